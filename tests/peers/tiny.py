"""Tiny random pipelines of each family, in the real format, made offline: real classes and tokenizers, few pixels."""

# diffusers states narrower types than it takes
# pyright: reportArgumentType=false, reportCallIssue=false, reportAttributeAccessIssue=false

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Lumina2Pipeline,
    Lumina2Transformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    Gemma2Config,
    Gemma2Model,
    GemmaTokenizerFast,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = [chr(code) for code in range(33, 127)]
WIDTH = 8


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    """Byte pairs without merges: each letter is a token."""
    folder.mkdir(parents=True, exist_ok=True)
    words = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def t5_tokenizer() -> Any:
    """A token for each letter, by a unigram model."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    words = [*((token, 0.0) for token in special.values()), ("\u2581", -2.0), *((letter, -3.0) for letter in LETTERS)]
    tokenizer = Tokenizer(models.Unigram(words, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    return T5TokenizerFast(tokenizer_object=tokenizer, **special, extra_ids=0, model_max_length=512)


def gemma_tokenizer() -> Any:
    """Byte pairs of the text that Sana writes in front of prompts, so that it is short."""
    special = {"pad_token": "<pad>", "eos_token": "<eos>", "bos_token": "<bos>", "unk_token": "<unk>"}
    instruction = inspect.signature(SanaPipeline.__call__).parameters["complex_human_instruction"].default
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\u2581", "merged_with_previous")
    trainer = trainers.BpeTrainer(vocab_size=800, special_tokens=list(special.values()), show_progress=False)
    tokenizer.train_from_iterator(["\n".join(instruction), *LETTERS], trainer)
    return GemmaTokenizerFast(tokenizer_object=tokenizer, **special, padding_side="right")


def clip(kind: Any = CLIPTextModel, width: int = WIDTH) -> Any:
    config = CLIPTextConfig(
        vocab_size=200, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=77, projection_dim=WIDTH, bos_token_id=188, eos_token_id=189, pad_token_id=189,
    )  # fmt: skip
    return kind(config).eval()


def t5() -> Any:
    return T5EncoderModel(
        T5Config(vocab_size=100, d_model=WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    ).eval()


def gemma() -> Any:
    config = Gemma2Config(
        vocab_size=800, hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=4, max_position_embeddings=1024, attn_logit_softcapping=None,
    )  # fmt: skip
    return Gemma2Model(config).eval()


def vae(channels: int = 4, levels: int = 2, **options: Any) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(WIDTH,) * levels, latent_channels=channels, norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * levels, up_block_types=("UpDecoderBlock2D",) * levels,
        mid_block_add_attention=False, sample_size=16, **options,
    )  # fmt: skip


def _unet(cross: int = WIDTH, **options: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(8, 16), layers_per_block=1, norm_num_groups=4, attention_head_dim=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=cross, **options,
    )  # fmt: skip


def stable_diffusion(folder: Path, prediction: str = "epsilon") -> Any:
    return StableDiffusionPipeline(
        vae=vae(), text_encoder=clip(), tokenizer=clip_tokenizer(folder / "clip"), unet=_unet(),
        scheduler=DDIMScheduler(
            beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, clip_sample=False,
            set_alpha_to_one=True, prediction_type=prediction, timestep_spacing="trailing", steps_offset=1,
        ),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def v_prediction(folder: Path) -> Any:
    return stable_diffusion(folder, "v_prediction")


def radedit(folder: Path) -> Any:
    """Stable Diffusion with a BERT of 128 tokens in place of CLIP."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    (folder / "vocab.txt").write_text("\n".join(words))
    bert = BertConfig(
        vocab_size=len(words), hidden_size=WIDTH, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16
    )
    pipe = stable_diffusion(folder / "base")
    return StableDiffusionPipeline(
        **{
            **pipe.components,
            "text_encoder": BertModel(bert).eval(),
            "tokenizer": BertTokenizer(str(folder / "vocab.txt"), model_max_length=128),
        },
        requires_safety_checker=False,
    )


def stable_diffusion_xl(folder: Path) -> Any:
    tokenizer = clip_tokenizer(folder / "clip")
    unet = _unet(
        cross=2 * WIDTH, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=WIDTH + 24, transformer_layers_per_block=1,
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=vae(), text_encoder=clip(), text_encoder_2=clip(CLIPTextModelWithProjection), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet, scheduler=DDIMScheduler(clip_sample=False, timestep_spacing="trailing"),
        add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> Any:
    tokenizer = clip_tokenizer(folder / "clip")
    transformer = SD3Transformer2DModel(
        sample_size=8, in_channels=4, out_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=2 * WIDTH, pos_embed_max_size=16,
        dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    text_encoder_3 = T5EncoderModel(
        T5Config(vocab_size=100, d_model=16, d_kv=4, d_ff=16, num_layers=1, num_heads=2, dropout_rate=0.0)
    )
    return StableDiffusion3Pipeline(
        transformer=transformer, vae=vae(shift_factor=0.1, scaling_factor=1.5, use_quant_conv=False,
                                         use_post_quant_conv=False),
        text_encoder=clip(CLIPTextModelWithProjection), text_encoder_2=clip(CLIPTextModelWithProjection),
        text_encoder_3=text_encoder_3.eval(), tokenizer=tokenizer, tokenizer_2=tokenizer,
        tokenizer_3=t5_tokenizer(), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )  # fmt: skip


def pixart(folder: Path) -> Any:
    del folder
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=WIDTH,
        in_channels=4, out_channels=8, cross_attention_dim=16, use_additional_conditions=False,
    )  # fmt: skip
    return PixArtSigmaPipeline(
        tokenizer=t5_tokenizer(), text_encoder=t5(), vae=vae(), transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
    )  # fmt: skip


def sana(folder: Path) -> Any:
    del folder
    autoencoder = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "ResBlock"),
        decoder_block_types=("ResBlock", "ResBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_layers_per_block=(1, 1), decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), ()), decoder_qkv_multiscales=((), ()), scaling_factor=0.4,
    )  # fmt: skip
    transformer = SanaTransformer2DModel(
        in_channels=4, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=4,
        num_cross_attention_heads=2, cross_attention_head_dim=4, cross_attention_dim=8, caption_channels=WIDTH,
        sample_size=16, patch_size=1,
    )  # fmt: skip
    return SanaPipeline(
        tokenizer=gemma_tokenizer(), text_encoder=gemma(), vae=autoencoder, transformer=transformer,
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
    )  # fmt: skip


def lumina(folder: Path) -> Any:
    del folder
    transformer = Lumina2Transformer2DModel(
        sample_size=4, patch_size=2, in_channels=4, hidden_size=24, num_layers=1, num_refiner_layers=1,
        num_attention_heads=3, num_kv_heads=1, multiple_of=2, axes_dim_rope=(4, 2, 2), axes_lens=(320, 16, 16),
        cap_feat_dim=WIDTH,
    )  # fmt: skip
    return Lumina2Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=6.0), vae=vae(4, 4, shift_factor=0.1),
        text_encoder=gemma(), tokenizer=gemma_tokenizer(),
    )  # fmt: skip


def flux(folder: Path) -> Any:
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=WIDTH, pooled_projection_dim=WIDTH, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=vae(4, 1, shift_factor=0.1),
        text_encoder=clip(), tokenizer=clip_tokenizer(folder / "clip"), text_encoder_2=t5(),
        tokenizer_2=t5_tokenizer(), transformer=transformer,
    )  # fmt: skip


MAKE: dict[str, Callable[[Path], Any]] = {
    "stable-diffusion": stable_diffusion,
    "v-prediction": v_prediction,
    "radedit": radedit,
    "stable-diffusion-xl": stable_diffusion_xl,
    "stable-diffusion-3": stable_diffusion_3,
    "pixart-sigma": pixart,
    "sana": sana,
    "lumina-2": lumina,
    "flux": flux,
}


def tiny(name: str, root: Path, seed: int = 0) -> Path:
    """The folder ``root/NAME`` of a random pipeline, with all of the denoiser's weights drawn anew.

    Some layers begin at zero, so that a fresh network would not see its prompt.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = MAKE[name](root / f"{name}-files")
        denoiser = getattr(pipe, "transformer", None) or pipe.unet
        for parameter in denoiser.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.3 / max(1, parameter[0].numel()) ** 0.5 * 3)
    pipe.save_pretrained(root / name)
    return root / name
