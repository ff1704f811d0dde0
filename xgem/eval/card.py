"""A checkpoint's model card, written from its evaluation records, so that no number in it is typed by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from xgem.checkpoints.card import UNDOCUMENTED, UNMEASURED, card_text
from xgem.checkpoints.store import CARD_NAME, checkpoint_hash, read_index
from xgem.eval.report import as_markdown
from xgem.eval.schema import Record, read_record
from xgem.types import InputError

RESULTS: Final = ("<!-- results:begin -->", "<!-- results:end -->")

_TITLES: Final = {
    "routes": "Single outputs",
    "joint": "Several outputs of one request",
    "prompts": "Frontals from a sentence",
    "codec": "The report codec alone",
    "control": "Requested vs. detected findings",
    "all": "All families of metrics",
}
_OPTIONAL: Final = ("prompts", "codec")
_SETTINGS: Final = (
    "split",
    "seed",
    "num_samples",
    "seeds",
    "report_samples",
    "num_inference_steps",
    "sampler",
    "guidance_scale",
    "guidance_start",
    "guidance_end",
    "guidance_rescale",
    "bootstrap",
)


def write_card(root: Path, evaluation: Path | None, *, notes: Path | None = None, readme: Path | None = None) -> Path:
    """Write ``root/README.md`` from the records in ``evaluation``, and their tables into ``readme``.

    ``evaluation`` is the results folder of ``xgem eval routes`` and, for a model with an alignment, of ``xgem eval
    joint``; for one with a ControlNet, only of ``xgem eval control``. Results of ``xgem eval prompts``, ``codec`` and
    ``all`` in that folder are included too, those of ``all`` not in ``readme``. ``notes`` is Markdown on what no
    command can tell: data, licence, limitations. Without ``notes`` or ``evaluation`` the card says what is missing.

    Raises:
        InputError: the notes or the evaluation are missing, or the evaluation is of another checkpoint.
        CheckpointError: ``root`` is not a checkpoint. DataError: a record cannot be read.
    """
    index = read_index(root)
    preset: Mapping[str, Any] = index.preset
    checkpoint = checkpoint_hash(root)
    commands = ["routes", "joint"] if preset.get("alignment") in index.components else ["routes"]
    if any(entry.kind == "controlnet" for entry in index.components.values()):
        commands = ["control"]
    # Tables of the results
    if evaluation is not None:
        commands += [name for name in _OPTIONAL if (evaluation / f"{name}.json").is_file()]
    results = UNMEASURED if evaluation is None else _tables(evaluation, checkpoint, commands)
    families = ""
    if evaluation is not None and (evaluation / "all.json").is_file():
        families = "\n\n" + _tables(evaluation, checkpoint, ["all"])
    written = UNDOCUMENTED if notes is None else _read(notes, "notes")
    card = card_text(root, notes=written, results=results + families)
    path = root / CARD_NAME
    path.write_text(card, encoding="utf-8")
    if readme is not None:
        _put_between(readme, results)
    return path


def _put_between(readme: Path, results: str) -> None:
    """Replace the text between the markers of the results."""
    text = _read(readme, "the file")
    begin, end = RESULTS
    if begin not in text or end not in text:
        raise InputError(f"{readme}: expected the markers {begin} and {end}")
    head, rest = text.split(begin, 1)
    readme.write_text(f"{head}{begin}\n{results}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: {what} cannot be read ({error}); expected Markdown") from None


def _tables(evaluation: Path, checkpoint: str, commands: Sequence[str]) -> str:
    """The tables of the records that the named commands wrote for ``checkpoint``."""
    parts: list[str] = []
    for name in commands:
        path = evaluation / f"{name}.json"
        if not path.is_file():
            raise InputError(f"{evaluation}: expected {name}.json; run `xgem eval {name} --out {evaluation}` first")
        record = read_record(path)
        measured = record.settings.get("model", {}).get("hash")
        if measured != checkpoint:
            raise InputError(f"{path}: measured checkpoint {measured}, expected {checkpoint}: run it again")
        parts.append(f"### {_TITLES[name]}\n\n{_described(record, name)}\n\n{_nested(as_markdown(record)).strip()}")
    return "\n\n".join(parts)


def _described(record: Record, name: str) -> str:
    """One line on the command and the settings that all its numbers share."""
    flat = {**record.settings, **record.settings.get("sampling", {})}
    settings = ", ".join(f"{key} {flat[key]}" for key in _SETTINGS if flat.get(key) is not None)
    return f"By `xgem eval {name}` (xgem {record.xgem}): {settings}." if settings else f"By `xgem eval {name}`."


def _nested(markdown: str) -> str:
    """Markdown with its headings one level lower."""
    return "\n".join(f"#{line}" if line.startswith("### ") else line for line in markdown.splitlines())
