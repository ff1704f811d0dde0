"""LoRA (Hu et al. 2022) on a pipeline's denoiser, by peft, in diffusers' files."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xgem.peers.record import ADAPTER_NAME
from xgem.types import CheckpointError, ConfigError, InputError
from xgem.utils.files import one_line

if TYPE_CHECKING:
    from xgem.peers.locate import PeerLocation

_NAME = "default"


def peft_package() -> Any:
    """The package that LoRA takes; InputError where it is not installed."""
    try:
        import peft
    except ImportError:
        raise InputError("LoRA needs the package peft, which is not installed: install xgem[peers]") from None
    return peft


def add_fresh(denoiser: nn.Module, *, rank: int, alpha: float, targets: Sequence[str]) -> dict[str, nn.Parameter]:
    """Put new LoRA layers into ``denoiser``, which change nothing yet (B is zero), and return their weights by name.

    A is drawn from torch's generator, as peft does by default.

    Raises:
        ConfigError: no layer of the denoiser has a name among ``targets``. InputError: peft is not installed.
    """
    peft = peft_package()
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets))
    try:
        peft.inject_adapter_in_model(config, denoiser, adapter_name=_NAME)
    except ValueError as error:
        raise ConfigError(
            f"targets {', '.join(targets)}: no layer of {type(denoiser).__name__}: {one_line(error)}"
        ) from error
    return {name: value for name, value in denoiser.named_parameters() if "lora_" in name}


def save_adapter(
    pipe: Any, folder: Path, weights: Mapping[str, Tensor], denoiser: str, *, rank: int, alpha: float
) -> None:
    """Write the LoRA ``weights``, by their names in the denoiser, as ``pytorch_lora_weights.safetensors``.

    By the pipeline's ``save_lora_weights``; in the same layout where it has none (PixArt).
    """
    layers = sorted({name.partition(".lora_")[0] for name in weights})
    about = {
        "r": rank,
        "lora_alpha": alpha,
        "target_modules": layers,
    }  # without it diffusers takes alpha to be the rank
    own = {name.replace(f".{_NAME}.", "."): value.detach().cpu().contiguous() for name, value in weights.items()}
    if hasattr(pipe, "save_lora_weights"):
        pipe.save_lora_weights(folder, **{f"{denoiser}_lora_layers": own, f"{denoiser}_lora_adapter_metadata": about})
    else:
        save_file({f"{denoiser}.{name}": one for name, one in own.items()}, folder / ADAPTER_NAME, {"format": "pt"})
    _order_header(folder / ADAPTER_NAME)


def _order_header(file: Path) -> None:
    """Put what a safetensors file says of itself in alphabetical order: the library's own is another each time."""
    data = file.read_bytes()
    end = 8 + int.from_bytes(data[:8], "little")  # of the header, JSON that is padded with spaces
    header = json.loads(data[8:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(end - 8)
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[end:])


def add_saved(pipe: Any, location: PeerLocation) -> None:
    """Add the LoRA in ``location.adapter`` to a pipeline.

    Raises:
        CheckpointError: it cannot be read, or its weights are not those that its record says of this denoiser.
        InputError: peft is not installed.
    """
    peft, folder, record = peft_package(), location.adapter, location.record
    assert folder is not None
    where = f"{folder / ADAPTER_NAME}: does not fit {location.base} (hash {location.folder.hash})"
    try:
        weights = load_file(folder / ADAPTER_NAME)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder / ADAPTER_NAME}: cannot be read: {one_line(error)}") from error
    if record is None or record.kind != "lora":
        _add_foreign(pipe, folder, where)
        return
    name = location.folder.denoiser
    denoiser: nn.Module = getattr(pipe, name)
    assert record.rank is not None
    assert record.alpha is not None
    fresh = add_fresh(denoiser, rank=record.rank, alpha=record.alpha, targets=record.targets)
    wanted = {f"{name}.{key.replace(f'.{_NAME}.', '.')}": tuple(value.shape) for key, value in fresh.items()}
    given = {key: tuple(value.shape) for key, value in weights.items()}
    if wanted != given:
        wrong = sorted(key for key in wanted.keys() | given.keys() if wanted.get(key) != given.get(key))[0]
        raise CheckpointError(
            f"{where}: {wrong!r} is {given.get(wrong, 'missing')}, expected {wanted.get(wrong, 'no such weight')}"
        )
    own = {key.removeprefix(f"{name}."): value for key, value in weights.items()}
    peft.set_peft_model_state_dict(denoiser, own, adapter_name=_NAME)


def _add_foreign(pipe: Any, folder: Path, where: str) -> None:
    """A LoRA that others trained, by diffusers' own loader."""
    if not hasattr(pipe, "load_lora_weights"):
        raise CheckpointError(
            f"{folder}: has no record of xgem's, and diffusers reads no LoRA for a {type(pipe).__name__}"
        )
    try:
        pipe.load_lora_weights(str(folder), weight_name=ADAPTER_NAME)
    except (RuntimeError, ValueError, KeyError) as error:
        raise CheckpointError(f"{where}: {one_line(error)}") from error
