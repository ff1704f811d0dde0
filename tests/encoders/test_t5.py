"""T5's encoder from a directory in the real format: the states of transformers' own model, also after saving."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import T5Config, T5EncoderModel, T5Tokenizer

from xgem.checkpoints.component import Component
from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs.components import T5EncoderConfig
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_component
from xgem.encoders.t5 import T5Encoder
from xgem.types import CheckpointError, ConfigError, DeviceError, InputError

TEXTS = ["large left pleural effusion .", "no effusion ."]
LONG = " ".join(TEXTS * 5)


def unigram() -> T5Tokenizer:
    """A tokenizer laid out as T5's: pieces of a unigram model, ``</s>`` behind every text."""
    words = sorted(
        {f"\u2581{word}" for text in TEXTS for word in text.split()} | set("\u2581abcdefghijklmnopqrstuvwxyz.L")
    )
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -9.0), *[(word, -1.0 - 0.01 * len(word)) for word in words]]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5Tokenizer(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", extra_ids=0)


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A directory as the hub has it, of sizes that no preset repeats, and the model that was saved there."""
    torch.manual_seed(0)
    folder, tokenizer = tmp_path_factory.mktemp("t5"), unigram()
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=24,
        d_kv=5,
        d_ff=40,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    model = T5EncoderModel(config).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(str(folder))
    return folder, model


def saved_and_loaded(component: Component, root: Path) -> Any:
    init_checkpoint(root, load_preset("debug"))
    save_component(root, "text_encoder", component)
    return load_component(root, "text_encoder")


@torch.no_grad()
def test_it_is_the_encoder_of_transformers(published: tuple[Path, Any], tmp_path: Path) -> None:
    folder, theirs = published
    ours = T5Encoder.from_config(T5EncoderConfig(pretrained=str(folder))).eval()
    assert (ours.config.width, ours.config.layers, ours.config.heads, ours.config.d_ff) == (24, 2, 3, 40)
    ids = unigram()(TEXTS, padding=True, return_tensors="pt")
    expected = theirs(input_ids=ids["input_ids"], attention_mask=ids["attention_mask"]).last_hidden_state
    init_checkpoint(tmp_path / "root", load_preset("debug"))
    save_component(tmp_path / "root", "text_encoder", ours)
    shutil.move(folder, tmp_path / "gone")  # the checkpoint needs nothing from elsewhere
    try:
        again: Any = load_component(tmp_path / "root", "text_encoder")
    finally:
        shutil.move(tmp_path / "gone", folder)
    for encoder in (ours, again):
        made = encoder.encode(TEXTS)
        torch.testing.assert_close(made.tokens, expected)
        assert torch.equal(made.mask, ids["attention_mask"].bool())
        torch.testing.assert_close(made.pooled.norm(dim=1), torch.ones(2))
    for file in (tmp_path / "root/text_encoder").rglob("*.json"):
        assert file.name == "config.json" or str(folder.parent) not in file.read_text(encoding="utf-8")


@torch.no_grad()
def test_padding_says_nothing(published: tuple[Path, Any]) -> None:
    encoder = T5Encoder.from_config(T5EncoderConfig(pretrained=str(published[0]))).eval()
    together, alone = encoder.encode(TEXTS), encoder.encode(TEXTS[1:])
    n = alone.tokens.shape[1]
    assert together.mask[1].sum() == n < together.mask.shape[1]
    torch.testing.assert_close(together.tokens[1, :n], alone.tokens[0])
    torch.testing.assert_close(together.pooled[1], alone.pooled[0])


@torch.no_grad()
def test_texts_are_cut_and_it_is_said(published: tuple[Path, Any]) -> None:
    encoder = T5Encoder.from_config(T5EncoderConfig(pretrained=str(published[0]), max_length=9)).eval()
    count = len(unigram()(LONG)["input_ids"])
    assert encoder.notes(LONG) == (f"report truncated from {count} to 9 tokens",)
    assert encoder.notes(TEXTS[0]) == ()
    assert encoder.notes(LONG, 5) == (f"report truncated from {count} to 5 tokens",)
    assert encoder.encode([LONG]).tokens.shape == (1, 9, 24)
    ids = encoder.tokenizer(LONG, truncation=True, max_length=9)["input_ids"]
    assert ids[-1] == encoder.tokenizer.eos_token_id


@torch.no_grad()
def test_it_can_stay_on_the_cpu(published: tuple[Path, Any]) -> None:
    config = T5EncoderConfig(pretrained=str(published[0]))
    elsewhere = T5Encoder.from_config(config).to(torch.device("meta"))
    assert elsewhere.t5.device.type == "meta"
    here = T5Encoder.from_config(config.model_copy(update={"on_cpu": True})).eval()
    expected = here.encode(TEXTS).tokens
    assert here.to(torch.device("meta"), torch.float64).t5.device.type == "cpu"
    assert here.t5.dtype == torch.float64
    torch.testing.assert_close(here.encode(TEXTS).tokens.float(), expected)
    with pytest.raises(ValueError, match="choose one"):
        T5EncoderConfig(on_cpu=True, quantize="4bit")


@torch.no_grad()
def test_capitals_are_folded_unless_asked_for(published: tuple[Path, Any]) -> None:
    for lowercase in (True, False):
        encoder = T5Encoder.from_config(T5EncoderConfig(pretrained=str(published[0]), lowercase=lowercase)).eval()
        small, capital = (encoder.encode([text]).pooled for text in ("large effusion .", "Large effusion ."))
        assert torch.allclose(small, capital) == lowercase


def test_one_of_fresh_weights(tmp_path: Path) -> None:
    config = T5EncoderConfig(vocab_size=300, width=16, layers=1, heads=2, d_ff=24)
    encoder: Any = random_component(config)
    again = saved_and_loaded(encoder, tmp_path / "root")
    with torch.no_grad():
        one, other = (item.encode(["Clear lungs."]) for item in (encoder, again))
    assert one.tokens.shape[2] == config.embed_dim == 16
    torch.testing.assert_close(one.tokens, other.tokens, rtol=0, atol=0)
    with pytest.raises(ConfigError, match="expected a tokenizer"):
        T5Encoder.from_config(config)


def test_empty_texts_are_refused(published: tuple[Path, Any]) -> None:
    encoder = T5Encoder.from_config(T5EncoderConfig(pretrained=str(published[0])))
    with pytest.raises(InputError, match="leave the report out"):
        encoder.encode(["effusion", " "])


def test_pickled_weights_and_missing_tokenizers_are_refused(published: tuple[Path, Any], tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    shutil.copytree(published[0], folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="safetensors"):
        T5Encoder.from_config(T5EncoderConfig(pretrained=str(folder)))
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(published[0] / name, bare / name)
    with pytest.raises(CheckpointError, match="no vocabulary: expected the tokenizer's files"):
        T5Encoder.from_config(T5EncoderConfig(pretrained=str(bare)))
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        T5Encoder.from_config(T5EncoderConfig(pretrained="nobody/has-this"))


def test_four_bits_need_a_device(published: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(DeviceError, match="needs a CUDA device"):
        T5Encoder.from_config(T5EncoderConfig(pretrained=str(published[0]), quantize="4bit"))


@pytest.mark.gpu
def test_four_bits_are_close_to_all(published: tuple[Path, Any], tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    config = T5EncoderConfig(pretrained=str(published[0]))
    full = T5Encoder.from_config(config).eval().cuda()
    small = T5Encoder.from_config(config.model_copy(update={"quantize": "4bit"})).eval()
    again = saved_and_loaded(small, tmp_path / "root")  # what is saved are the weights as they were
    for encoder in (small, again):
        with torch.no_grad():
            one, other = full.encode(TEXTS), encoder.cuda().encode(TEXTS)
        assert torch.nn.functional.cosine_similarity(one.pooled, other.pooled.float()).min() > 0.9
