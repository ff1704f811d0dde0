"""Inputs of a request as the command line takes them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from xgem.dicom.address import is_address
from xgem.types import InputError

_FOLDERS: ContextVar[ExitStack] = ContextVar("folders of fetched inputs")


def inputs_of(given: dict[str, Any], more: list[str] | None) -> dict[str, Any]:
    """Inputs by modality, of options of their own and of ``--input``."""
    inputs = {name: fetched(value) for name, value in given.items() if value is not None}
    for name, value in named(more, "--input").items():
        if name in inputs:
            raise InputError(f"input {name!r} is given twice")
        inputs[name] = fetched(value)
    return inputs


def fetched(value: Any) -> Any:
    """An input as it is; of an address in a PACS, a file that is there until the command ends."""
    if isinstance(value, dict):
        return {name: fetched(one) for name, one in value.items()}
    if not is_address(value):
        return value
    from xgem.dicom.transfer import local

    return local(value, Path(_FOLDERS.get().enter_context(tempfile.TemporaryDirectory(prefix="xgem-"))))


@contextmanager
def fetching() -> Iterator[None]:
    """While a command runs: what it fetches is removed at the end."""
    with ExitStack() as folders:
        before = _FOLDERS.set(folders)
        try:
            yield
        finally:
            _FOLDERS.reset(before)


def mask_of(texts: list[str] | None) -> Any:
    """One file that names its structures itself, or files by structure, named by NAME= or else by the file's name."""
    if texts is not None and len(texts) == 1 and "=" not in texts[0]:
        return texts[0]
    texts = [text if "=" in text else f"{Path(text).stem.rpartition('.')[2]}={text}" for text in texts or ()]
    return named(texts, "--mask") or None


def named(texts: list[str] | None, option: str) -> dict[str, Any]:
    """NAME=VALUE options as a mapping; InputError where one is of another form or a name comes twice."""
    values: dict[str, Any] = {}
    for text in texts or []:
        name, separator, value = text.partition("=")
        if not separator or not name:
            raise InputError(f"{option} is {text!r}, expected NAME=VALUE")
        if name in values:
            raise InputError(f"{option} names {name!r} twice")
        values[name] = value
    return values


def report_of(text: str | None) -> str | Path | None:
    """A report as text; of ``@PATH`` the path.

    Raises:
        InputError: the text is the name of a file.
    """
    if text is None:
        return None
    if text.startswith("@"):
        return Path(text[1:])
    if os.path.isfile(text):  # noqa: PTH113  (a Path cannot be asked about texts that are too long for a name)
        raise InputError(f"--report is the name of a file, {text}; to read the report from it, give --report @{text}")
    return text


def _paths(texts: Sequence[str]) -> list[Path]:
    return [Path(fetched(text)) for text in texts]


def many_of(
    frontal: Sequence[str] | None, lateral: Sequence[str] | None, report: str | Path | None, files: Sequence[str]
) -> tuple[dict[str, list[Path]], dict[str, Any]]:
    """Inputs of several cases, paths by modality, and those of one or of every case; ``files`` are further images.

    Raises:
        InputError: files that belong to no option.
    """
    from xgem.pipeline.cases import is_many, read_text

    images = {name: _paths(given) for name, given in (("frontal", frontal), ("lateral", lateral)) if given}
    if files:
        if len(images) != 1:
            raise InputError(f"{files[0]} belongs to no option; give files after --frontal, or after --lateral")
        next(iter(images.values())).extend(_paths(files))
    many = {name: paths for name, paths in images.items() if is_many(paths)}
    single: dict[str, Any] = {name: paths[0] for name, paths in images.items() if name not in many}
    if isinstance(report, Path):
        if is_many([report]):
            many["report"] = [report]
        else:
            single["report"] = read_text(report)
    elif report is not None:
        single["report"] = report
    return many, single
