"""XGeM's published report models and joint layers by xgem's names: Optimus, report denoiser, V, joint attentions."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.implementations import BertWordPieceTokenizer, ByteLevelBPETokenizer
from torch import Tensor, equal
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from xgem.checkpoints.pretrained import load_tokenizer
from xgem.configs.codecs import ReportVAEConfig
from xgem.generators.report_vae import ReportVAE
from xgem.types import CheckpointError
from xgem.utils.files import one_line

Named = tuple[dict[str, Tensor], dict[str, str]]
"""Weights by our names, and the published name of each."""

_TEXT_SCALE = 4.3108
_BERT_FILE, _GPT2_FILES = "bert-base-cased-vocab.txt", ("gpt2-vocab.json", "gpt2-merges.txt")

# Parts of a residual block, convolutional or fully connected, and of a spatial transformer
_BLOCK: tuple[str, ...] = (
    "in_layers.0",
    "in_layers.2",
    "emb_layers.1",
    "out_layers.0",
    "out_layers.3",
    "skip_connection",
)
_FC: dict[str, str] = dict(zip(_BLOCK, ("norm1", "fc1", "time", "norm2", "fc2", "skip"), strict=True))
_RESNET: dict[str, str] = dict(
    zip(_BLOCK, ("norm1", "conv1", "time_emb_proj", "norm2", "conv2", "conv_shortcut"), strict=True)
)
_TRANSFORMER = {"norm": "norm", "proj_in": "proj_in", "proj_out": "proj_out", "transformer_blocks.0": "block"}
_TIME = {"time_embed.0": "time.linear_1", "time_embed.2": "time.linear_2"}
_ENDS = _TIME | {"input_blocks.0.0": "enter", "out.0": "norm", "out.2": "leave"}
_OPTIMUS = {
    "encoder.linear": "to_posterior",
    "encoder": "encoder",
    "decoder.transformer.linear": "to_memory",
    "decoder.transformer.linear_emb": "to_embedding",
    "decoder": "decoder",
}


def _under(name: str, table: Mapping[str, str]) -> str | None:
    """``name`` with the first of the table's prefixes that it has replaced; None where it has none of them."""
    for published, ours in table.items():
        if name.startswith(f"{published}."):
            return f"{ours}.{name.removeprefix(f'{published}.')}"
    return None


def _renamed(weights: Mapping[str, Tensor], rename: Callable[[str], str | None]) -> Named:
    """The weights that ``rename`` gives a name; convolutions over one position, (out, in, 1, 1), as linear layers."""
    source = {ours: key for key in weights if (ours := rename(key)) is not None}
    values = {ours: weights[key] for ours, key in source.items()}
    return {
        ours: value[:, :, 0, 0] if value.shape[2:] == (1, 1) and not ours.endswith("conv_shortcut.weight") else value
        for ours, value in values.items()
    }, source


def fc_unet_weights(weights: Mapping[str, Tensor], layers_per_block: int) -> Named:
    """Weights of the report denoiser by the names of ``xgem.generators.fc_unet.FCUNet``."""

    def rename(key: str) -> str | None:
        if (end := _under(key, _ENDS)) is not None:
            return end
        match = re.fullmatch(r"(input_blocks|output_blocks|middle_block)\.(\d+)\.(.+)", key)
        if match is None:
            return None
        number, rest = int(match[2]), match[3]
        if match[1] == "middle_block":
            if number > 2:
                return None
            place, table = (("middle.block.", _FC), ("middle.attention.", _TRANSFORMER), ("middle_block.", _FC))[number]
            return None if (name := _under(rest, table)) is None else place + name
        layer, _, rest = rest.partition(".")
        # On the way up a linear layer follows the last block of a level, and has a place of its own here
        down = match[1] == "input_blocks"
        place = f"down.{number - 1}" if down else f"up.{number + number // (layers_per_block + 1)}"
        if rest in ("weight", "bias"):
            return f"{place}.{rest}" if down else f"up.{int(place[3:]) + 1}.{rest}"
        part, table = ("block", _FC) if layer == "0" else ("attention", _TRANSFORMER)
        return None if (name := _under(rest, table)) is None else f"{place}.{part}.{name}"

    return _renamed(weights, rename)


def environment_weights(weights: Mapping[str, Tensor], levels: int, *, spatial: bool) -> Named:
    """Weights of V of one denoiser, its time embedding included, by the names of ``LevelledEncoder``."""
    last = 2 * levels

    def rename(key: str) -> str | None:
        match = re.fullmatch(r"connecters_out\.(\d+)\.(.+)", key)
        if match is None:
            return _under(key, _TIME)
        number, rest = int(match[1]), match[2]
        if number in (0, last):
            return _under(rest, {"0": "enter"} if number == 0 else {"0": "norm", "2": "leave"})
        if number % 2 == 0:
            name = _under(rest, {"0.op": "conv"}) if spatial else rest.removeprefix("0.")
        else:  # beside video layers, a residual block is the first of two nested modules
            name = _under(rest.removeprefix("0.").removeprefix("0."), _RESNET if spatial else _FC)
        return None if name is None else f"levels.{number - 1}.{name}"

    return _renamed(weights, rename)


def joint_weights(weights: Mapping[str, Tensor]) -> Named:
    """Weights of one denoiser's joint attentions by the names of ``JointTransformers``: on the way down, then up."""
    pattern = re.compile(r"((?:in|out)put_block_connecters_in)\.(\d+)\.0\.(.+)")
    found = {(m[1], int(m[2])) for key in weights if (m := pattern.fullmatch(key))}
    numbers = {place: number for number, place in enumerate(sorted(found))}

    def rename(key: str) -> str | None:
        match = pattern.fullmatch(key)
        if match is None or (name := _under(match[3], _TRANSFORMER)) is None:
            return None
        return f"sites.{numbers[match[1], int(match[2])]}.{name}"

    return _renamed(weights, rename)


def _backend(files: list[Path], pretrained: str, read: Callable[..., Any]) -> Tokenizer:
    """A tokenizer from vocabulary ``files`` where they are all there, otherwise that of a pretrained model."""
    if not all(file.is_file() for file in files):
        return load_tokenizer(pretrained).backend_tokenizer
    try:
        return Tokenizer.from_str(read(*map(str, files)).to_str())
    except Exception as error:  # tokenizers raises plain exceptions, and TypeError for a missing special token
        raise CheckpointError(f"{files[0]}: no vocabulary can be read from it ({one_line(error)})") from None


def optimus_tokenizers(source: Path, config: ReportVAEConfig) -> tuple[Any, Any]:
    """BERT's and GPT-2's tokenizers as Optimus uses them in XGeM: reports are lower-cased, and begin with a space for
    GPT-2, which has three tokens more.

    They are read from the vocabulary files published with the code, where ``source`` has them, and otherwise from
    ``config``'s pretrained models. CheckpointError if neither can be read.
    """
    names = [config.pretrained_encoder, config.pretrained_decoder]
    bert = _backend([source / _BERT_FILE], str(names[0]), lambda vocab: BertWordPieceTokenizer(vocab, lowercase=False))
    gpt2 = _backend([source / name for name in _GPT2_FILES], str(names[1]), ByteLevelBPETokenizer)
    for backend in (bert, gpt2):
        after = [] if backend.normalizer is None else [backend.normalizer]
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *after])
    gpt2.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)  # type: ignore[assignment]
    special = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    encoder = PreTrainedTokenizerFast(tokenizer_object=bert, **special)
    decoder = PreTrainedTokenizerFast(tokenizer_object=gpt2)
    for name in ("pad", "bos", "eos"):  # in this order: it gives their ids
        decoder.add_special_tokens({f"{name}_token": f"<{name.upper()}>"})
    return encoder, decoder


def optimus(weights: Mapping[str, Tensor], source: Path, config: ReportVAEConfig) -> tuple[ReportVAE, Named]:
    """Optimus with new weights of the sizes of ``weights``, and those by its names.

    Raises:
        CheckpointError: a table of embeddings is missing or of another size than the vocabulary, or output weights are
            not those of the embeddings.
    """

    def rows(key: str) -> int:
        if key not in weights:
            raise CheckpointError(f"{source.name}: missing optimus.{key}")
        return len(weights[key])

    encoder_tokenizer, decoder_tokenizer = optimus_tokenizers(source, config)
    words, tokens = "encoder.embeddings.word_embeddings.weight", "decoder.transformer.wte.weight"
    for key, tokenizer in ((words, encoder_tokenizer), (tokens, decoder_tokenizer)):
        if rows(key) != len(tokenizer):
            raise CheckpointError(
                f"{source.name}: optimus.{key} has {rows(key)} rows, its tokenizer {len(tokenizer)} tokens: expected "
                f"the published vocabularies ({_BERT_FILE}, {', '.join(_GPT2_FILES)}) beside the weights"
            )
    head = weights.get("decoder.lm_head.weight")
    if head is not None and not equal(head, weights[tokens]):
        raise CheckpointError(f"{source.name}: optimus.decoder.lm_head.weight differs from optimus.{tokens}")
    bert = BertConfig(
        vocab_size=rows(words),
        hidden_size=config.width,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        intermediate_size=4 * config.width,
        max_position_embeddings=rows("encoder.embeddings.position_embeddings.weight"),
        type_vocab_size=rows("encoder.embeddings.token_type_embeddings.weight"),
    )
    gpt2 = GPT2Config(
        vocab_size=rows(tokens),
        n_positions=rows("decoder.transformer.wpe.weight"),
        n_embd=config.width,
        n_layer=config.layers,
        n_head=config.heads,
        bos_token_id=decoder_tokenizer.bos_token_id,
        eos_token_id=decoder_tokenizer.eos_token_id,
    )
    scaled = config.model_copy(update={"latent_mean": 0.0, "latent_std": 1 / _TEXT_SCALE})
    model = ReportVAE(scaled, encoder_tokenizer, decoder_tokenizer, BertModel(bert), GPT2LMHeadModel(gpt2))
    known = set(model.state_dict())
    ours, names = _renamed(weights, lambda key: name if (name := _under(key, _OPTIMUS)) in known else None)
    if head is None:
        ours["decoder.lm_head.weight"], names["decoder.lm_head.weight"] = weights[tokens], tokens
    return model, (ours, names)
