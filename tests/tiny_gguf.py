"""A tiny random language model as GGUF, which llama.cpp serves: it speaks nonsense, and valid JSON by a grammar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
WIDTH, HEADS, HIDDEN, CONTEXT = 32, 4, 64, 4096


def write_tiny_model(file: Path, template: str | None = TEMPLATE, seed: int = 0) -> None:
    """One transformer block of llama's architecture over bytes (259 tokens), with random weights.

    The last channel is a constant that holds the logits of bytes beyond ASCII down: random ones are no UTF-8.
    """
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    writer.add_name("tiny")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(HIDDEN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = gguf.TokenType
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_token_types([kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if template is not None:
        writer.add_chat_template(template)
    random = np.random.default_rng(seed)
    shapes = {
        "token_embd": (len(tokens), WIDTH),
        "output": (len(tokens), WIDTH),
        **{f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")},
        "blk.0.ffn_gate": (HIDDEN, WIDTH),
        "blk.0.ffn_up": (HIDDEN, WIDTH),
        "blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    weights = {name: random.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    weights["token_embd"][:, -1] = 3
    weights["blk.0.attn_output"][-1] = weights["blk.0.ffn_down"][-1] = 0
    weights["output"][:, -1] = [-10 if token >= 3 + 128 else 0 for token in range(len(tokens))]
    for name, weight in weights.items():
        writer.add_tensor(f"{name}.weight", weight)
    for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    _close(writer)


def write_tiny_eyes(file: Path, seed: int = 0) -> None:
    """Its vision encoder (llama.cpp's ``--mmproj``), built as Gemma 3's: 64 x 64 pixels become 4 tokens."""
    import gguf

    writer = gguf.GGUFWriter(file, "clip")
    writer.add_clip_has_vision_encoder(True)
    writer.add_clip_projector_type("gemma3")
    writer.add_vision_image_size(64)
    writer.add_vision_patch_size(8)
    writer.add_vision_embedding_length(WIDTH)
    writer.add_vision_feed_forward_length(HIDDEN)
    writer.add_vision_projection_dim(WIDTH)
    writer.add_vision_block_count(1)
    writer.add_vision_head_count(HEADS)
    writer.add_vision_attention_layernorm_eps(1e-6)
    writer.add_vision_image_mean([0.5, 0.5, 0.5])
    writer.add_vision_image_std([0.5, 0.5, 0.5])
    writer.add_vision_use_gelu(True)
    random = np.random.default_rng(seed)
    shapes = {
        "v.patch_embd": (WIDTH, 3, 8, 8),
        **{f"v.blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "out")},
        "v.blk.0.ffn_up": (HIDDEN, WIDTH),
        "v.blk.0.ffn_down": (WIDTH, HIDDEN),
    }
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(shape[0], np.float32))
    for name in ("v.blk.0.ln1", "v.blk.0.ln2", "v.post_ln"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(WIDTH, np.float32))
    writer.add_tensor("v.position_embd.weight", random.normal(0, 0.3, (64, WIDTH)).astype(np.float32))
    writer.add_tensor("mm.input_projection.weight", random.normal(0, 0.3, (WIDTH, WIDTH)).astype(np.float32))
    writer.add_tensor("mm.soft_emb_norm.weight", np.ones(WIDTH, np.float32))
    _close(writer)


def _close(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
