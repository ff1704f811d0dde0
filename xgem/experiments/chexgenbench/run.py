"""A whole benchmark in one folder, part by part; what is finished is not done again.

::

    bench.json                     the plan's data, which a folder keeps
    real.parquet                   the real studies
    models/NAME/images/            cohorts: test, privacy, train
    models/NAME/PART/              a part's record and report: PART.json, .csv, .md, .html, the benchmark's own CSVs
    README.md, index.html, tables/ tables and ranks over the models
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from xgem.eval.record import FamilyResult
from xgem.eval.report import write_results
from xgem.eval.schema import Record, read_record
from xgem.experiments.chexgenbench import parts, tables
from xgem.experiments.chexgenbench.data import REAL, Sources, fingerprint, write_real
from xgem.experiments.chexgenbench.plan import Model, Part, Plan
from xgem.judges.reid import load_reid
from xgem.types import CheckpointError, InputError, OutputError
from xgem.utils.files import check_output_folder, new_folder, read_json, write_json
from xgem.utils.progress import announce

logger = logging.getLogger(__name__)
BEGUN: Final = "bench.json"
FORMAT: Final = "xgem-chexgenbench"


@dataclass(frozen=True)
class Benchmark:
    """A finished benchmark: the records by model and part, how many parts were measured now, and the summary."""

    records: dict[str, dict[Part, Record]]
    measured: int
    summary: str


def run(plan: Plan, out: Path, *, device: str | None = None, progress: bool = True) -> Benchmark:
    """Generate, measure and tabulate all models of a plan in the folder ``out``, or finish what was begun there.

    Raises:
        InputError, ManifestError, DataError: a model is unknown, or the data do not fit the plan; before anything is
            generated. CheckpointError: not a re-identification network. OutputError: the folder holds something else or
            a benchmark of other data.
    """
    _check_models(plan)
    if plan.privacy.reid is not None and "privacy" in plan.parts:
        load_reid(plan.privacy.reid)
    out = out.absolute()
    _begin(plan, out)
    sources = Sources(plan, out, device, progress)
    records: dict[str, dict[Part, Record]] = {}
    measured = 0
    for model in plan.models:
        for part in plan.parts:
            record, new = _part(sources, model, part)
            records.setdefault(model.name, {})[part] = record
            measured += new
    if "reports" in plan.parts:
        runnable = next((model for model in plan.models if model.sets is None), None)
        if runnable is not None:
            record, new = _part(sources, runnable, "reports", parts.REAL_MODEL)
            records[parts.REAL_MODEL] = {"reports": record}
            measured += new
    summary = tables.write(plan, sources, records, out)
    return Benchmark(records, measured, summary)


def _check_models(plan: Plan) -> None:
    """Find every checkpoint and set before hours are spent on the first."""
    for model in plan.models:
        if model.name == parts.REAL_MODEL:
            raise InputError(f"a model is named {model.name!r}, which stands for the real images: name it otherwise")
        if model.sets is None:
            try:
                fingerprint(model)
            except CheckpointError as error:
                raise InputError(f"model {model.name!r}: {error}") from None
            continue
        for kind, path in vars(model.sets).items():
            if path is not None and not path.exists():
                raise InputError(f"model {model.name!r}: no such {kind} set {path}: correct the path or leave it out")


def _begin(plan: Plan, out: Path) -> None:
    """The folder with its manifest of real studies.

    Raises:
        OutputError: it holds other files, or a benchmark of other data.
    """
    settings = {"format": FORMAT, "data": plan.data.model_dump(mode="json")}
    file = out / BEGUN
    if not file.is_file():
        check_output_folder(out)
        with new_folder(out) as folder:
            write_real(plan.data, folder / REAL)
            write_json(folder / BEGUN, settings)
        return
    if read_json(file) != settings:
        raise OutputError(f"{out}: its benchmark was begun with other data: choose another folder")


def _part(sources: Sources, model: Model, part: Part, name: str | None = None) -> tuple[Record, bool]:
    """The record of a part, and whether it was measured now; ``name``: of whom it is, by default the model."""
    folder = parts.part_folder(sources.out, name or model.name, part)
    file, key = folder / f"{part}.json", parts.key_of(sources, model, part)
    if file.is_file():
        record = read_record(file)
        if record.settings.get("key") == key:
            return record, False
        logger.warning("%s: of another plan or checkpoint, and measured again", folder)
    announce(f"{sources.plan.name}: {name or model.name}, {part}", shown=sources.progress)
    result: FamilyResult = parts.measure(sources, model, part) if name is None else parts.real_reports(sources, model)
    settings: dict[str, Any] = parts.options_of(sources) | {"model": name or model.name, "key": key}
    write_results([result], folder, part, settings=settings, overwrite=True)
    return read_record(file), True
