"""Many cases with one request: inputs matched by name, a folder of results for each case, resumed where it stopped."""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from xgem.configs.reading import ReadOptions
from xgem.data.image_files import IMAGE_ENDINGS, is_data
from xgem.data.manifest import Manifest
from xgem.modalities import get_modality
from xgem.pipeline.conditioning import read_prompts
from xgem.pipeline.generation import RECORD_NAME, Generation
from xgem.pipeline.options import CallOptions
from xgem.types import InputError, OutputError
from xgem.utils.files import check_output_folder, replacing, write_json

if TYPE_CHECKING:
    from xgem.configs.preset import Preset
    from xgem.pipeline.pipeline import XgemPipeline

logger = logging.getLogger(__name__)

STATE_NAME: Final = "cases.json"
MANIFEST_ENDINGS: Final = (".parquet", ".jsonl")

Cases = dict[str, dict[str, Any]]
"""Inputs by modality, by the name of the case."""


def is_many(paths: Sequence[Path]) -> bool:
    """Whether paths stand for several cases: more than one file, a folder, or a manifest."""
    return len(paths) > 1 or any(path.is_dir() or path.suffix.lower() in MANIFEST_ENDINGS for path in paths)


def gather(preset: Preset, many: Mapping[str, Sequence[Path]], shared: Mapping[str, Any]) -> Cases:
    """The cases that files, folders and manifests hold, with the inputs that all of them share.

    A case is named after its file without the ending, or by its study's id; several modalities are matched by these
    names. Of folders, hidden files and files of other endings are left out; of manifests, studies that lack one of the
    modalities.

    Args:
        preset: the checkpoint's preset, whose sections make a study's report.
        many: paths by modality, as the user gave them.
        shared: inputs of every case by modality.

    Raises:
        InputError: a place holds nothing that can be used, two files have one name, or a case lacks a modality.
    """
    found = {name: _values(preset, name, paths) for name, paths in many.items()}
    first, names = next(iter(found.items()))
    for other, values in found.items():
        lacking = sorted(names.keys() ^ values.keys())
        if lacking:
            raise InputError(
                f"{len(lacking)} cases are not in both --{first} and --{other}, first {lacking[0]!r}; give files of "
                "the same names (without their endings), or manifests of the same studies"
            )
    return {name: {**shared, **{modality: found[modality][name] for modality in found}} for name in sorted(names)}


def reading_of(many: Mapping[str, Sequence[Path]]) -> ReadOptions:
    """How the images are read that manifests among the paths hold.

    Raises:
        InputError: not all of them in one way.
    """
    names = [name for name in many if get_modality(name).is_image]
    places = {path for name in names for path in many[name] if path.suffix.lower() in MANIFEST_ENDINGS}
    found = ReadOptions.common(one.reading for path in sorted(places) for one in Manifest.read(path).studies())
    if found is None:
        raise InputError(
            f"{', '.join(map(str, sorted(places)))}: studies whose images are read in different ways (their field "
            "reading); make a manifest of each kind, and run them one by one"
        )
    return found


def _values(preset: Preset, modality: str, paths: Sequence[Path]) -> dict[str, Any]:
    """Values of one modality by the name of the case."""
    values: dict[str, Any] = {}
    for path in paths:
        for name, value in _of_place(preset, modality, path).items():
            if name in values:
                raise InputError(f"--{modality}: two inputs are named {name!r}; rename one, or run them separately")
            values[name] = value
    return values


def _of_place(preset: Preset, modality: str, path: Path) -> dict[str, Any]:
    known = get_modality(modality)
    if path.suffix.lower() in MANIFEST_ENDINGS:
        studies = Manifest.read(path).studies()
        values = {_folder_name(one.id): known.of_study(one, preset.report_sections) for one in studies}
        with_value = {name: value for name, value in values.items() if value is not None}
        if len(with_value) < len(values):
            logger.warning("%s: %d studies without %s are left out", path, len(values) - len(with_value), modality)
    elif path.is_dir():
        endings = IMAGE_ENDINGS if known.is_image else {known.suffix}
        files = [
            file
            for file in sorted(path.iterdir())
            if file.suffix.lower() in endings and is_data(Path(file.name)) and not file.name.endswith(".mask.png")
        ]
        with_value = _by_stem(modality, files)
    else:
        with_value = _by_stem(modality, [path])
    if not with_value:
        raise InputError(f"{path}: nothing in it can be the input {modality!r}")
    return with_value


def _by_stem(modality: str, files: Sequence[Path]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for file in files:
        name = _folder_name(file.stem)
        if name in values:
            raise InputError(f"{file.parent}: two files are named {name!r}; rename one")
        values[name] = file if get_modality(modality).is_image else read_text(file)
    return values


def _folder_name(name: str) -> str:
    """A study's id as the name of a folder."""
    plain = "".join(character if character.isalnum() or character in "-_. " else "_" for character in name)
    return plain.lstrip(".") or "_"


def read_text(path: Path) -> str:
    """A text file in UTF-8; InputError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise InputError(f"{path}: not text in UTF-8; convert it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path}: cannot be read ({reason}); expected a text file") from None


def generate_cases(
    pipeline: XgemPipeline,
    cases: Cases,
    outputs: Sequence[str],
    out: Path,
    *,
    shared: Mapping[str, Any],
    overwrite: bool = False,
    saving: Mapping[str, Any] | None = None,
    **options: Any,
) -> Iterator[tuple[Path, list[Path]]]:
    """Generate each case into ``out/<case>`` and yield that folder with its samples' files, also of finished cases.

    A folder appears as a whole. The same call after an interruption makes what is missing: batches are always of the
    same cases, so that the result is the one of an uninterrupted run. Every case has the same seed, and so the same
    noise, as if it had been the only one. ``saving`` are further arguments of ``Generation.save``.

    Raises:
        OutputError: ``out`` holds something else, or cases of other settings (without ``overwrite``).
        InputError and others: as a call of the pipeline.
    """
    parsed = CallOptions.parse(options)
    before = _state(out)
    seed = parsed.seed if parsed.seed is not None else (before or {}).get("seed", secrets.randbelow(2**32))
    common = read_prompts(pipeline.preset, shared, parsed.reading)
    state: dict[str, Any] = {
        "synthetic": True,
        "checkpoint": {"name": pipeline.name, "hash": pipeline.hash},
        "outputs": list(outputs),
        "seed": seed,
        "options": {**parsed.record(), "batch_size": parsed.batch_size},
        "privacy_gate": parsed.privacy_gate is not None,
        "inputs": sorted({name for case in cases.values() for name in case}),
        "shared": {name: prompt.sha256 for name, prompt in common.items()},
    }
    if saving and saving != {"format": "png", "keep_patient": False}:
        state |= saving
    state = json.loads(json.dumps(state))
    if before is None or overwrite:
        check_output_folder(out, overwrite=overwrite)
        with replacing(out / STATE_NAME) as place:
            write_json(place, state)
    elif changed := [key for key in {**before, **state} if before.get(key) != state.get(key)]:
        then, now = (values.get(changed[0]) for values in (before, state))
        raise OutputError(
            f"{out}: was begun with another {changed[0]} ({then}, now {now}); choose another folder, or overwrite it "
            "(--overwrite)"
        )
    keywords: Any = {**options, "seed": seed}
    names, size = list(cases), max(1, parsed.batch_size // parsed.num_samples)
    for chunk in (names[start : start + size] for start in range(0, len(names), size)):
        missing = [name for name in chunk if overwrite or not (out / name / RECORD_NAME).is_file()]
        if missing:
            made: list[Generation] = pipeline([cases[name] for name in chunk], list(outputs), **keywords)
            for name, generation in zip(chunk, made, strict=True):
                if name in missing:
                    generation.save(out / name, overwrite=overwrite, **(saving or {}))
        yield from ((out / name, _files(out / name)) for name in chunk)


def _state(out: Path) -> dict[str, Any] | None:
    """What the cases in ``out`` were begun with, if any were."""
    try:
        values = json.loads((out / STATE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return cast(dict[str, Any], values) if isinstance(values, dict) else None


def _files(folder: Path) -> list[Path]:
    record = json.loads((folder / RECORD_NAME).read_text(encoding="utf-8"))
    return [folder / entry["file"] for entries in record["files"].values() for entry in entries]
