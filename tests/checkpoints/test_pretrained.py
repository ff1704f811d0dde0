"""Pretrained codecs and denoisers from directories in the real formats: same outputs as their own libraries give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs.codecs import ImageVAEConfig, ReportVAEConfig
from xgem.configs.components import ImageGeneratorConfig
from xgem.configs.preset import load_preset
from xgem.generators.image_vae import ImageVAE
from xgem.generators.latent_diffusion import ImageLatentDiffusion
from xgem.generators.report_vae import ReportVAE
from xgem.types import CheckpointError, Context

TEXTS = ["Large left pleural effusion.", "No acute cardiopulmonary abnormality.", "Heart size is normal."]


def saved_and_loaded(component: Any, name: str, root: Path) -> Any:
    init_checkpoint(root, load_preset("debug"))
    save_component(root, name, component)
    return load_component(root, name)


def pickled(source: Path, folder: Path) -> str:
    """The same directory with its weights as a pickle."""
    folder.mkdir()
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            name = "pytorch_model.bin" if file.stem == "model" else f"{file.stem}.bin"
            torch.save(load_file(file), folder / name)
        else:
            (folder / file.name).write_bytes(file.read_bytes())
    return str(folder)


# ------------------------------------------------------------------------------------------------- AutoencoderKL


@pytest.fixture(scope="module")
def stable_diffusion_vae(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    build: Any = AutoencoderKL
    vae = build(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(8, 16, 16),
        layers_per_block=2,
        latent_channels=4,
        norm_num_groups=8,
        scaling_factor=0.18215,
    ).eval()
    folder = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(folder, safe_serialization=True)
    return folder, vae


@torch.no_grad()
def test_a_stable_diffusion_vae(stable_diffusion_vae: tuple[Path, Any], tmp_path: Path) -> None:
    folder, theirs = stable_diffusion_vae
    ours = ImageVAE.from_config(ImageVAEConfig(pretrained=str(folder), image_size=32)).eval()
    assert ours.latent_shape == (4, 8, 8)
    x = torch.rand(2, 1, 32, 32) * 2 - 1
    latents = theirs.encode(x.expand(-1, 3, -1, -1)).latent_dist.mean * 0.18215
    images = theirs.decode(latents / 0.18215).sample.mean(dim=1, keepdim=True).clamp(-1, 1)
    for vae in (ours, saved_and_loaded(ours, "image_vae", tmp_path / "root")):
        torch.testing.assert_close(vae.encode(x), latents, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vae.decode(latents), images, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------ UNet2DConditionModel

UNET: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "attention_head_dim": 4,
    "cross_attention_dim": 24,
    "norm_num_groups": 8,
}


def generator_config(folder: Path | str, **changes: Any) -> ImageGeneratorConfig:
    return ImageGeneratorConfig(
        modality="frontal",
        prompts=("report",),
        context="pooled",
        context_dim=24,
        pooled_dim=24,
        pretrained=str(folder),
        latent_shape=(4, 8, 8),
        block_out_channels=(16, 32),
        attention=(True, False),
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=changes.pop("cross_attention_dim", 24),
        norm_num_groups=8,
    )


@pytest.fixture(scope="module")
def stable_diffusion_unet(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    torch.manual_seed(0)
    unet: Any = UNet2DConditionModel(sample_size=8, **UNET).eval()
    folder = tmp_path_factory.mktemp("unet")
    unet.save_pretrained(folder, safe_serialization=True)
    return folder, unet


@torch.no_grad()
def test_a_stable_diffusion_unet(stable_diffusion_unet: tuple[Path, Any], tmp_path: Path) -> None:
    folder, theirs = stable_diffusion_unet
    ours = ImageLatentDiffusion.from_config(generator_config(folder)).eval()
    z, t = torch.randn(2, 4, 8, 8), torch.tensor([10, 700])
    tokens = torch.randn(2, 3, 24)
    context = Context(tokens, torch.ones(2, 3, dtype=torch.bool), torch.randn(2, 24))
    expected = theirs(z, t, encoder_hidden_states=tokens).sample
    for model in (ours, saved_and_loaded(ours, "frontal", tmp_path / "root")):
        torch.testing.assert_close(model(z, t, context), expected, rtol=1e-4, atol=1e-5)


def test_a_unet_that_does_not_fit(stable_diffusion_unet: tuple[Path, Any]) -> None:
    with pytest.raises(CheckpointError, match="size mismatch") as caught:
        ImageLatentDiffusion.from_config(generator_config(stable_diffusion_unet[0], cross_attention_dim=32))
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ BERT and GPT-2


def word_piece() -> PreTrainedTokenizerFast:
    """A tokenizer laid out as BERT's: [CLS] text [SEP]."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer.train_from_iterator(TEXTS, trainers.WordPieceTrainer(vocab_size=120, special_tokens=specials))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]", **names)


def byte_level() -> PreTrainedTokenizerFast:
    """A tokenizer laid out as GPT-2's: one special token for everything."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(TEXTS, trainer)
    end = "<|endoftext|>"
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=end, eos_token=end, unk_token=end)


@pytest.fixture(scope="module")
def optimus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Any, Any]:
    """BERT's and GPT-2's directories with sizes that no preset repeats, and the models."""
    torch.manual_seed(0)
    bert_folder, gpt2_folder = tmp_path_factory.mktemp("bert"), tmp_path_factory.mktemp("gpt2")
    first, second = word_piece(), byte_level()
    bert = BertModel(
        BertConfig(
            vocab_size=len(first), hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=40,
            max_position_embeddings=50,
        )
    ).eval()  # fmt: skip
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(second), n_positions=60, n_embd=16, n_layer=3, n_head=4)).eval()
    bert.save_pretrained(bert_folder, safe_serialization=True)
    gpt2.save_pretrained(gpt2_folder, safe_serialization=True)
    first.save_pretrained(str(bert_folder))
    second.save_pretrained(str(gpt2_folder))
    return bert_folder, gpt2_folder, bert, gpt2


def optimus_config(bert: Path | str, gpt2: Path | str) -> ReportVAEConfig:
    return ReportVAEConfig(pretrained_encoder=str(bert), pretrained_decoder=str(gpt2), max_length=24, latent_dim=12)


@torch.no_grad()
def test_bert_and_gpt2(optimus: tuple[Path, Path, Any, Any], tmp_path: Path) -> None:
    bert_folder, gpt2_folder, bert, gpt2 = optimus
    torch.manual_seed(1)
    ours = ReportVAE.from_config(optimus_config(bert_folder, gpt2_folder)).eval()

    # The saved tokenizer, not a second training of it: WordPiece training breaks ties at random.
    tokens = AutoTokenizer.from_pretrained(str(bert_folder))(TEXTS, padding=True, return_tensors="pt")
    pooled = bert(tokens["input_ids"], attention_mask=tokens["attention_mask"]).pooler_output
    torch.testing.assert_close(ours.encode(TEXTS), ours.to_posterior(pooled).chunk(2, dim=1)[0])
    old = len(byte_level())
    torch.testing.assert_close(ours.decoder.transformer.wte.weight[:old], gpt2.transformer.wte.weight)
    tokenizer = ours.decoder_tokenizer
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3

    again = saved_and_loaded(ours, "report_vae", tmp_path / "root")
    z = torch.randn(4, 12) * 3
    ids = ours.decoder_ids(TEXTS)
    torch.testing.assert_close(again.encode(TEXTS), ours.encode(TEXTS), rtol=0, atol=0)
    assert torch.equal(again.decoder_ids(TEXTS), ids)
    torch.testing.assert_close(again.logits(ids, z[:3]), ours.logits(ids, z[:3]), rtol=0, atol=0)
    assert again.decode(z) == ours.decode(z)
    for file in (tmp_path / "root/report_vae").glob("*_architecture.json"):
        assert str(tmp_path.parent) not in file.read_text(encoding="utf-8")


def test_decoder_ids_stand_between_both_ends_even_when_cut(optimus: tuple[Path, Path, Any, Any]) -> None:
    vae = ReportVAE.from_config(optimus_config(*optimus[:2])).eval()
    tokenizer = vae.decoder_tokenizer
    ids = vae.decoder_ids([*TEXTS, " ".join(TEXTS * 5)])
    assert ids.shape == (4, 24)
    assert (ids[:, 0] == tokenizer.bos_token_id).all()
    assert ((ids == tokenizer.eos_token_id).sum(dim=1) == 1).all()
    texts = tokenizer.batch_decode(ids[:3], skip_special_tokens=True)
    assert [text.strip() for text in texts] == TEXTS


# ------------------------------------------------------------------------------------------------------ refusals


def test_pickled_weights_are_refused(
    stable_diffusion_vae: tuple[Path, Any],
    stable_diffusion_unet: tuple[Path, Any],
    optimus: tuple[Path, Path, Any, Any],
    tmp_path: Path,
) -> None:
    vae, unet = pickled(stable_diffusion_vae[0], tmp_path / "vae"), pickled(stable_diffusion_unet[0], tmp_path / "unet")
    bert, gpt2 = pickled(optimus[0], tmp_path / "bert"), pickled(optimus[1], tmp_path / "gpt2")
    for build in (
        lambda: ImageVAE.from_config(ImageVAEConfig(pretrained=vae, image_size=32)),
        lambda: ImageLatentDiffusion.from_config(generator_config(unet)),
        lambda: ReportVAE.from_config(optimus_config(bert, optimus[1])),
        lambda: ReportVAE.from_config(optimus_config(optimus[0], gpt2)),
    ):
        with pytest.raises(CheckpointError, match="safetensors") as caught:
            build()
        assert "\n" not in str(caught.value)


def test_what_is_nowhere(tmp_path: Path) -> None:
    for source in ("nobody/has-this", "nobody/has-this/unet", str(tmp_path)):
        with pytest.raises(CheckpointError, match="cannot be loaded"):
            ImageVAE.from_config(ImageVAEConfig(pretrained=source, image_size=32))
