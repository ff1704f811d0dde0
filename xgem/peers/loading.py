"""A diffusers pipeline from its folder, strictly: safetensors, no weight left at random, no code of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import diffusers.utils.logging as diffusers_logging
import torch
import transformers.utils.logging as transformers_logging
from safetensors import SafetensorError, safe_open

from xgem.peers.adapter import add_saved
from xgem.peers.folder import LEFT_OUT, PipelineFolder
from xgem.peers.locate import PeerLocation
from xgem.types import CheckpointError
from xgem.utils.files import one_line

_FORMER: Final = ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0."))
"""Names in early autoencoders, which diffusers still reads."""


def load_pipeline(
    location: PeerLocation, *, device: torch.device | str, dtype: torch.dtype | dict[str, torch.dtype]
) -> Any:
    """The diffusers pipeline at ``location`` with its adapter, if it has one, in evaluation mode and without bars.

    ``dtype``: one number format, or one by component, and ``default``.

    Raises:
        CheckpointError: it cannot be read, weights are missing, or the adapter does not fit.
        InputError: the package that adapters take is not installed.
    """
    folder = location.folder
    without: dict[str, Any] = {name: None for name in LEFT_OUT if name in folder.index}
    if without:
        without["requires_safety_checker"] = False
    try:
        with without_bars():
            pipe = folder.kind.from_pretrained(
                str(location.root), torch_dtype=dtype, use_safetensors=True, local_files_only=True, **without
            )
    except (
        OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError, SafetensorError
    ) as error:  # fmt: skip
        raise CheckpointError(f"{location.name}: cannot be loaded by diffusers: {one_line(error)}") from error
    for name in folder.components:
        _check_complete(folder, name, getattr(pipe, name))
    if location.adapter is not None:
        add_saved(pipe, location)
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval().requires_grad_(False)
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(device)


@contextmanager
def without_bars() -> Iterator[None]:
    """Both libraries show a bar for every component, unless told otherwise for the whole process."""
    changed = [one for one in (diffusers_logging, transformers_logging) if one.is_progress_bar_enabled()]
    for one in changed:
        one.disable_progress_bar()
    try:
        yield
    finally:
        for one in changed:
            one.enable_progress_bar()


def _check_complete(folder: PipelineFolder, name: str, part: Any) -> None:
    """CheckpointError where a diffusers model has a weight that its files have not: it would be random."""
    from diffusers import ModelMixin

    if not isinstance(part, ModelMixin):
        return  # transformers ties weights of its own accord, and refuses what is missing otherwise
    stored: set[str] = set()
    for file in folder.files:
        if file.startswith(f"{name}/") and file.endswith(".safetensors"):
            with safe_open(str(folder.root / file), "pt") as stream:
                stored |= set(stream.keys())
    for old, new in _FORMER:
        stored |= {key.replace(old, new) for key in stored}
    lacking = sorted({key for key, _ in part.named_parameters()} - stored)
    if lacking:
        raise CheckpointError(
            f"{folder.root / name}: {len(lacking)} weights are missing, first {lacking[0]!r}; fetch the pipeline again"
        )
