"""Plants every kind of unfit row among real radiographs of held-out subjects, and counts what `xgem data curate` finds.

    python benchmarks/curation_planted.py --data DATA --count 200 --folder FOLDER

No subject among these has been used to fit the judge of content or the fingerprint, and no picture of something else.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pictures import CHANGES, Real, collage, not_chest, others, real, with_text
from PIL import Image

from xgem.curation.engine import Engine
from xgem.curation.plan import CurationPlan
from xgem.curation.run import curate
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.data.sources import openi
from xgem.utils.files import read_json, write_json

SEED = 1


class Planter:
    """Writes pictures and rows of one source."""

    def __init__(self, folder: Path, name: str) -> None:
        self.folder, self.name, self.rows = folder / name, name, list[Row]()
        self.folder.mkdir(parents=True)

    def add(self, kind: str, pixels: Any, view: str, copy_of: Path | None = None, **fields: Any) -> str:
        study = f"{self.name}-{kind}-{len(self.rows):05d}"
        file = self.folder / f"{study}.png"
        if copy_of is not None:
            shutil.copy(copy_of, file)
        else:
            Image.fromarray(np.rint(np.ascontiguousarray(pixels) * 255).astype(np.uint8)).save(file)
        values = {"subject": study, "source": "openi", "labels": ("normal",), **fields}
        self.rows.append(Row(study=study, split="train", view=view, file=str(file), **values))
        return study

    def write(self) -> dict[str, str]:
        Manifest(tuple(self.rows), self.folder).write(self.folder / "manifest.parquet")
        return {"name": self.name, "manifest": str(self.folder / "manifest.parquet")}


def planted(pool: list[Real], reports: list[Row], count: int, folder: Path) -> dict[str, Any]:
    """The sources, and for each copy the study that it is of."""
    rng = np.random.default_rng(SEED)
    pool = [pool[k] for k in rng.permutation(len(pool))]
    fresh = iter(pool)
    first, second, third = (Planter(folder, name) for name in ("good", "copies", "unfit"))
    good = [next(fresh) for _ in range(4 * count)]
    names = [first.add("good", one.pixels, one.view, subject=f"{one.source}-{one.subject}") for one in good]
    files = [Path(row.file or "") for row in first.rows]
    of: dict[str, str] = {}
    for kind in ("exact", *CHANGES, "mirrored", "turned", "negative"):
        for k in rng.choice(len(good), count, replace=False):
            one = good[k].pixels
            changed = {"exact": one, "mirrored": one[:, ::-1], "negative": 1 - one}.get(kind)
            changed = np.rot90(one, int(rng.integers(1, 4))) if kind == "turned" else changed
            changed = CHANGES[kind](one, rng) if changed is None else changed
            of[second.add(kind, changed, good[k].view, files[k] if kind == "exact" else None)] = names[k]
    for _ in range(count):
        one = next(fresh)
        third.add("rotated", np.rot90(one.pixels, int(rng.integers(1, 4))), one.view)
        one = next(fresh)
        third.add("inverted", 1 - one.pixels, one.view)
        one = next(fresh)
        third.add("wrong view", one.pixels, "frontal" if one.view == "lateral" else "lateral")
        third.add("text", with_text(next(fresh).pixels, rng), "frontal")
        third.add("collage", collage([good[k].pixels for k in rng.choice(len(good), 4)], rng), "frontal")
    pictures = others(held_out=True)
    for _ in range(count):
        third.add("not chest", not_chest(rng, pictures), "frontal")
    normal = [row for row in reports if row.labels == ("normal",)]
    named = {"Pleural Effusion", "Cardiomegaly", "Pneumothorax", "Pneumonia", "Pulmonary Edema"}
    abnormal = [row for row in reports if named & set(row.labels)]
    for k in range(count):
        one = next(fresh)
        mine = reports[int(rng.integers(len(reports)))]
        text = {
            "findings": mine.findings,
            "impression": mine.impression,
            "labels": mine.labels,
            "qualified": mine.qualified,
        }
        third.add("good report", one.pixels, one.view, **text)
        one = next(fresh)
        a, b = (some[int(rng.integers(len(some)))] for some in (normal, abnormal))
        report, labels = (a, b) if k % 2 else (b, a)
        text = {"findings": report.findings, "impression": report.impression, "labels": labels.labels}
        third.add("mislabelled", one.pixels, one.view, **text)
    return {"1 sources": [planter.write() for planter in (first, second, third)], "2 copies of": of}


def found(record: dict[str, Any], kind: str) -> bool:
    """Whether a planted row that is no copy was found for what it is."""
    if kind == "text":
        return any("text" in note for note in record["notes"])
    if kind in ("not chest", "collage"):
        return record["stage"] == "content" and record["decision"] == "dropped"
    if kind == "inverted":  # some lie on their side in the data set, or are there twice
        return any(word in (record["reason"] or "") for word in ("inverted", "negative"))
    if kind == "rotated":
        return "turned back" in (record["reason"] or "") or "rotated" in (record["orientation"] or "")
    if kind == "wrong view":
        return record["kind"] == "view" or any("shows a" in note for note in record["notes"])
    return record["kind"] == "contradiction"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1)
    options = parser.parse_args()
    folder = options.folder.absolute()
    if not (folder / "planted.json").exists():
        folder.mkdir(parents=True, exist_ok=True)
        pool = real(options.data, ("val", "test"))
        prepared = openi.prepare(options.data / "openi", folder / "openi.parquet")
        reports = [row for row in prepared.rows if row.view == "frontal" and row.impression and row.labels]
        write_json(folder / "planted.json", planted(pool, reports, options.count, folder))
    sources, of = read_json(folder / "planted.json").values()
    plan = CurationPlan.model_validate({"name": "planted", "sources": sources})
    curate(plan, folder / "out", Engine(jobs=options.jobs))
    totals, hits, lost = Counter[str](), Counter[str](), Counter[str]()
    by_study = {one["study"]: one for one in pq.read_table(folder / "out" / "decisions.parquet").to_pylist()}

    def kept(study: str) -> str:
        """The copy of its picture that is kept: of two the larger, which may be the planted one."""
        return by_study[study]["duplicate_of"] or study

    for study, record in by_study.items():
        kind = study.split("-")[1]
        totals[kind] += 1
        if study in of:
            hits[kind] += kept(study) == kept(of[study])
        elif not kind.startswith("good"):
            hits[kind] += found(record, kind)
        elif record["decision"] == "fixed" or (
            record["decision"] == "dropped" and not kept(study).startswith("copies")
        ):
            lost[f"{record['decision']}: {record['kind']}"] += 1
            print(record["decision"], study, record["reason"], record["correlation"])
    table = {kind: {"n": totals[kind], "found": hits[kind]} for kind in totals if not kind.startswith("good")}
    good = sum(totals[kind] for kind in ("good", "good report"))
    print(json.dumps({"planted": table, "good": {"n": good, "lost or changed": dict(lost)}}, indent=2))


if __name__ == "__main__":
    main()
