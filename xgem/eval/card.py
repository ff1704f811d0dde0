"""A checkpoint's model card, written from its evaluation, so that no number in it is typed by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from xgem.checkpoints.store import CARD_NAME, checkpoint_hash, read_index
from xgem.types import InputError

RESULTS = ("<!-- results:begin -->", "<!-- results:end -->")

_UNMEASURED = "This checkpoint has not been measured yet."
_UNSAID = "Nobody has written down yet what it was trained on, under which licence, and where it fails."

_HEAD = """---
library_name: xgem
license: other
tags: [chest-radiography, synthetic-data, latent-diffusion, any-to-any]
---

# {name}

{description}

**For research only. Not for diagnosis, nor for any decision about a patient.** Everything it makes is synthetic.

{notes}

## Settings of training

| stage | steps | batch | learning rate |
|---|---|---|---|
{stages}

## Parameters

| component | parameters |
|---|---|
{parameters}

Checkpoint hash `{hash}`.

## Measures

n, seed and settings stand in the tables; the classifier is trained on real training images only, reports
are labelled by xgem's own rules (`xgem-rules`), and Frechet distances are in the named feature spaces, not Inception's.

{results}
"""

_FAMILIES = """

## Families of measures

By `xgem eval all`. Images were made from reports, reports from frontals, pairs from laterals; privacy and utility
look at images made from training reports. What needs weights that do not ship is `not computed`.

"""


def write_card(root: Path, evaluation: Path | None, *, notes: Path | None = None, readme: Path | None = None) -> Path:
    """Write ``root/README.md`` from ``evaluation``, and the tables into ``readme``.

    ``evaluation`` is the folder of ``xgem eval routes`` and, for a model with an alignment, of ``xgem eval joint``; for
    one that annotations steer, of ``xgem eval control`` alone. What ``xgem eval all`` left there goes into it too.
    ``notes`` is Markdown with what no command knows: data, licence, limits. Without it, or without ``evaluation``, the
    card says what is missing.

    Raises:
        InputError: the notes or the evaluation are missing, or the evaluation is of another checkpoint.
        CheckpointError: ``root`` is no checkpoint.
    """
    index = read_index(root)
    preset: Mapping[str, Any] = index.preset
    found = checkpoint_hash(root)
    measures = ["routes", "joint"] if preset.get("alignment") in index.components else ["routes"]
    if any(entry.kind == "controlnet" for entry in index.components.values()):
        measures = ["control"]
    results = _UNMEASURED if evaluation is None else _tables(evaluation, found, measures)
    families = ""
    if evaluation is not None and (evaluation / "all.json").is_file():
        families = _FAMILIES + _tables(evaluation, found, ["all"])
    stages = "\n".join(
        f"| {name} | {stage['steps']} | {stage['batch_size']} | {stage['learning_rate']:g} |"
        for name, stage in preset["train"].items()
    )
    counts = {name: _parameters(root / name) for name in index.components}
    rows = [*counts.items(), ("all", sum(counts.values()))]
    try:
        said = _UNSAID if notes is None else notes.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{notes}: notes cannot be read ({error}); expected Markdown") from None
    card = _HEAD.format(
        name=preset["name"],
        description=preset["description"],
        notes=said,
        stages=stages,
        parameters="\n".join(f"| {name} | {count:,} |" for name, count in rows),
        hash=found,
        results=results + families,
    )
    path = root / CARD_NAME
    path.write_text(card, encoding="utf-8")
    if readme is not None:
        text = readme.read_text(encoding="utf-8")
        begin, end = RESULTS
        if begin not in text or end not in text:
            raise InputError(f"{readme}: expected the marks {begin} and {end}")
        head, rest = text.split(begin, 1)
        readme.write_text(f"{head}{begin}\n{results}\n{end}{rest.split(end, 1)[1]}", encoding="utf-8")
    return path


def _tables(evaluation: Path, checkpoint: str, measures: Sequence[str]) -> str:
    """The Markdown tables of the named evaluations of ``checkpoint``."""
    found: list[str] = []
    for name in measures:
        tables, record = evaluation / f"{name}.md", evaluation / f"{name}.json"
        if not tables.is_file() or not record.is_file():
            raise InputError(
                f"{evaluation}: expected {name}.md and {name}.json; run `xgem eval {name} --out {evaluation}` first"
            )
        measured = json.loads(record.read_text(encoding="utf-8"))["settings"]["model"]["hash"]
        if measured != checkpoint:
            raise InputError(f"{record}: measured checkpoint {measured}, expected {checkpoint}: run it again")
        found.append(tables.read_text(encoding="utf-8").strip())
    return "\n\n".join(found)


def _parameters(folder: Path) -> int:
    from safetensors import safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as tensors:
            for key in tensors.keys():  # noqa: SIM118 - safe_open is no mapping
                size = 1
                for length in tensors.get_slice(key).get_shape():
                    size *= length
                total += size
    return total
