"""Is a published set what it was: checksums, tables, provenance and card."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import yaml

from xgem.data.manifest import Manifest
from xgem.publishing.publish import CARD, PROVENANCE, SUMS
from xgem.publishing.selection import MANIFEST
from xgem.types import CheckpointError, DataError
from xgem.utils.files import file_sha256, one_line, read_json
from xgem.utils.progress import track

_LINE: Final = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_HEADER: Final = re.compile(r"---\n(.*?\n)---\n", re.DOTALL)
_CACHES: Final = frozenset({".git", ".cache", ".gitattributes"})
"""What hubs add to a downloaded data set."""


def verify(folder: Path) -> dict[str, Any]:
    """Check a folder that :func:`xgem.publishing.publish.publish` wrote.

    Returns:
        counts: ``files``, ``images``.

    Raises:
        DataError: files are altered, missing or added; the card, the manifest or the provenance are of other images; a
            card that does not say that the set is synthetic. The message counts them and names the first.
    """
    sums = _sums(folder)
    present = {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and path.relative_to(folder).parts[0] not in _CACHES
    } - {SUMS}
    wrong = [f"{file}: missing" for file in sums if file not in present]
    wrong += [f"{file}: not in {SUMS}" for file in sorted(present - sums.keys())]
    wrong += [
        f"{file}: altered"
        for file in track(sorted(present & sums.keys()), "checksums")
        if file_sha256(folder / file) != sums[file]
    ]
    if wrong:
        raise DataError(f"{folder}: {len(wrong)} of {len(sums)} files are not as published, first {wrong[0]}")
    header = _header(folder / CARD)
    try:
        images = read_json(folder / PROVENANCE)["images"]
        unmarked = [file for file, one in images.items() if one["generated"].get("synthetic") is not True]
    except (CheckpointError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{folder / PROVENANCE}: not the provenance of a published set ({one_line(error)})") from error
    listed = {row.file for row in Manifest.read(folder / MANIFEST).rows}
    if unmarked or listed != images.keys() or header.get("images") != len(listed):
        raise DataError(
            f"{folder}: {header.get('images')} images in {CARD}, {len(listed)} in {MANIFEST}, {len(images)} in "
            f"{PROVENANCE}, {len(unmarked)} of them not marked as synthetic; expected the same images in all"
        )
    return {"files": len(sums), "images": len(images)}


def _sums(folder: Path) -> dict[str, str]:
    try:
        lines = (folder / SUMS).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{folder / SUMS}: cannot be read; expected a folder of xgem data publish") from error
    found = [_LINE.fullmatch(line) for line in lines]
    if not found or None in found:
        raise DataError(f"{folder / SUMS}: expected lines of sha256sum, of a folder of xgem data publish")
    return {one[2]: one[1] for one in found if one is not None}


def _header(card: Path) -> dict[str, Any]:
    found = _HEADER.match(card.read_text(encoding="utf-8"))
    try:
        header = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as error:
        raise DataError(f"{card}: its header is not YAML ({one_line(error)})") from error
    if not isinstance(header, dict) or header.get("synthetic") is not True:
        raise DataError(f"{card}: its header does not say that the set is synthetic; expected `synthetic: true`")
    return header
