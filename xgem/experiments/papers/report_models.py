"""Report models trained on synthetic pairs against one trained on real pairs (CheXGenBench 2.4, Table 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from xgem.configs.preset import ModalityConfig, Preset
from xgem.data.manifest import Manifest
from xgem.data.rows import Row
from xgem.eval.families import text
from xgem.eval.record import FamilyResult
from xgem.eval.schema import FamilyEntry
from xgem.experiments.papers import synthetic
from xgem.experiments.papers.plans import ReportUtility
from xgem.experiments.papers.steps import Bench, manifest_splits, need, preset_of
from xgem.experiments.papers.tables import Table, find
from xgem.types import ConfigError, InputError

REAL: Final = "Original"
_IMAGE, _TEXT = "frontal", "report"
_METRICS: Final = {
    "bleu_1": "BLEU-1",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "radgraph_partial": "F1-RadGraph",
    "micro_f1_5": "Micro F1-5",
    "micro_f1_14": "Micro F1-14",
}


def check(bench: Bench, settings: ReportUtility) -> None:
    """Refuse data without pairs of a frontal and a report in its splits.

    Raises:
        DataError: a split, or every pair of it, is missing. InputError: nothing makes synthetic images.
        ConfigError: a preset without what a report model needs.
    """
    data = bench.manifest(None)
    manifest_splits(data, "train", "val", settings.test_split)
    for split in ("train", "val", settings.test_split):
        pairs = [study for study in Manifest.read(data).studies(split) if study.images.get(_IMAGE) and study.impression]
        need(
            bool(pairs), f"{data}: no study of split {split!r} has a frontal and an impression; report models need both"
        )
    if not (settings.models or settings.synthetic):
        raise InputError(f"{bench.plan.name}: nothing makes synthetic images; name models, or sets (synthetic)")
    report_preset(preset_of(settings.report_model))


def run(bench: Bench, settings: ReportUtility) -> list[Table]:
    """One step a report model: of real pairs, and of the pairs of each source."""
    names = [REAL, *settings.models, *settings.synthetic]
    found = {name: bench.step(f"reports-{name}", lambda name=name: _measured(bench, settings, name)) for name in names}
    return [_table(found)]


def report_preset(preset: Preset) -> Preset:
    """What of a preset makes a report from a frontal alone.

    Raises:
        ConfigError: it lacks an encoder of frontals or a generator of reports.
    """
    image, report = preset.modalities.get(_IMAGE), preset.modalities.get(_TEXT)
    if image is None or image.encoder is None or report is None or report.generator is None or report.encoder is None:
        raise ConfigError(
            f"preset {preset.name!r}: a report model needs encoders of frontals and reports and a generator of reports"
        )
    kept = {name: preset.components[name] for name in (image.encoder, report.encoder, str(report.codec))}
    kept[report.generator] = preset.components[report.generator].model_copy(update={"prompts": (_IMAGE,)})
    values = preset.model_dump(mode="json") | {
        "components": {name: part.model_dump(mode="json") for name, part in kept.items()},
        "modalities": {
            _IMAGE: ModalityConfig(encoder=image.encoder).model_dump(),
            _TEXT: report.model_dump(),
        },
        "alignment": None,
        "sampling": preset.sampling.model_dump()
        | {"guidance_scale": {k: v for k, v in preset.sampling.guidance_scale.items() if k == _TEXT}},
        "train": {k: v.model_dump() for k, v in preset.train.items() if k in ("clip", "report-vae", _TEXT)},
    }
    return Preset.parse(values, f"{preset.name}, reports alone")


def pairs_of(images: Mapping[str, Path], data: Path, out: Path) -> Path:
    """A manifest whose training studies are the synthetic images with the reports that they were made from.

    ``images``: files by the id of the real study whose report they answer to, numbered behind a ``#`` where a study has
    several. Validation studies stay the real ones.
    """
    manifest = Manifest.read(data)
    studies = {study.id: study for study in manifest.studies("train")}
    rows = [
        Row(study=f"synthetic-{number:08d}", subject=f"synthetic-{number:08d}", split="train", view=_IMAGE,
            file=str(file.resolve()), impression=studies[pair.partition("#")[0]].impression,
            findings=studies[pair.partition("#")[0]].findings, source="xgem")
        for number, (pair, file) in enumerate(images.items())
    ]  # fmt: skip
    real = [
        row.model_copy(update={"file": None if row.file is None else str(manifest.file(row)), "masks": {}})
        for row in manifest.rows
        if row.split == "val"
    ]
    Manifest((*rows, *real), out.parent).write(out)
    return out


def train_report_model(bench: Bench, settings: ReportUtility, name: str, data: Path) -> Path:
    """The checkpoint of a report model of the pairs of a manifest's splits train and val."""
    training = settings.report_model
    preset = report_preset(preset_of(training))
    source = training.init
    init = bench.trained(source) if source in settings.training else source
    return bench.train(f"reports-{name}", training, data, init, preset=preset)


def _measured(bench: Bench, settings: ReportUtility, name: str) -> list[FamilyResult]:
    data = bench.manifest(None)
    pairs = data if name == REAL else _synthetic(bench, settings, name, data)
    model = str(train_report_model(bench, settings, name, pairs))
    limit: dict[str, Any] = {"limit": settings.test_limit}
    made = bench.cohorts(model, f"reports-{name}", data, settings.test_split, **limit)
    generated = made.sets(made.plan("test", (_IMAGE,), (_TEXT,)))[_TEXT]
    weights = settings.judged.weights()
    result = text.evaluate(
        bench.read(data, settings.test_split, labels="reports"),
        generated,
        training=bench.read(data, "train", labels="reports").with_reports(),
        labellers=weights.labellers(bench.place),
        external=weights.external(),
        draws=settings.bootstrap,
        seed=settings.seed,
    )
    return [replace(result, route="F->T")]


def _synthetic(bench: Bench, settings: ReportUtility, name: str, data: Path) -> Path:
    """The manifest of a source's synthetic pairs."""
    if name in settings.synthetic:
        items = synthetic.existing(settings.synthetic[name], (), _IMAGE)
    else:
        folder = synthetic.generated(
            bench, name, data, split="train", inputs=(_TEXT,), view=_IMAGE, count=settings.samples, limit=settings.limit
        )
        items = synthetic.existing(str(folder), (), _IMAGE)
    known = {study.id for study in Manifest.read(data).studies("train") if study.impression}
    images: dict[str, Path] = {}
    for number, item in enumerate(items.with_images().items):
        pair = item.pair or item.id
        if pair in known and item.file is not None:
            images[f"{pair}#{number}"] = item.file
    need(bool(images), f"{items.name}: no image names a training study with an impression (column `pair`)")
    return pairs_of(images, data, bench.out / "data" / f"pairs-{name}" / "manifest.jsonl")


def _table(found: Mapping[str, Sequence[FamilyEntry]]) -> Table:
    """A row a measure, a column a training set."""
    table = Table("reports", "Reports of models trained on real and on synthetic pairs, on real studies")
    for key, title in _METRICS.items():
        for name, families in found.items():
            table.put(title, name, find(families, key))
    return table
