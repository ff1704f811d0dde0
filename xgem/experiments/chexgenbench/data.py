"""The benchmark's real studies as one manifest, and the generated sets of each model."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Final

from xgem.checkpoints.locate import locate
from xgem.cohort.plan import Plan as CohortPlan
from xgem.cohort.run import run
from xgem.data.manifest import Manifest, place
from xgem.data.rows import Row, Split
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet
from xgem.data.study import report_of
from xgem.experiments.chexgenbench.plan import Annotations, Data, Model, Plan
from xgem.peers.locate import locate_peer
from xgem.pipeline.kinds import is_peer
from xgem.types import DataError, InputError, NotComputed
from xgem.utils.files import file_sha256
from xgem.utils.hashing import content_hash

VIEW: Final = "frontal"
REAL: Final = "real.parquet"
_MIMIC_PATIENT: Final = re.compile(r"(?:^|/)(p\d{8})/")
_PAUSE: Final = 2.0  # seconds
_FEWEST: Final = 6
"""Studies: PRDC with k = 5 needs one more than its neighbours."""


def write_real(data: Data, file: Path) -> Manifest:
    """Write the studies that have a frontal and a text, with their split and text as impression.

    Raises:
        ManifestError, DataError: the source is not valid, or a split has too few studies.
    """
    kept = _annotated(data.annotations, file.parent) if data.annotations else _of_manifest(data, file.parent)
    rows: list[Row] = []
    seen: set[tuple[str, str]] = set()
    for row in kept:
        key = row.split, row.impression.strip()
        if data.unique_prompts and key in seen:
            continue
        seen.add(key)
        rows.append(row)
    for split, n in ((data.train, data.train_n), (data.test, data.test_n)):
        order = sorted((row.study for row in rows if row.split == split), key=_hash)
        left_out = set(order[n:] if n is not None else ())
        rows = [row for row in rows if row.study not in left_out]
    source = data.annotations.test if data.annotations else data.manifest
    for split in (data.train, data.test):
        n = sum(row.split == split for row in rows)
        if n < _FEWEST:
            raise DataError(
                f"{source}: {n} studies of split {split!r} have a frontal and a text of their own: expected at least "
                f"{_FEWEST}; its splits are {', '.join(sorted({row.split for row in rows})) or 'empty'}"
            )
    manifest = Manifest(tuple(rows), file.parent.resolve())
    manifest.check(files=True)
    manifest.write(file)
    return manifest


def _hash(study: str) -> str:
    return hashlib.sha256(study.encode()).hexdigest()


def _of_manifest(data: Data, root: Path) -> Iterable[Row]:
    """One row per study: its first frontal, with the chosen sections as impression."""
    assert data.manifest is not None
    manifest = Manifest.read(data.manifest)
    first = {row.study: row for row in reversed(manifest.rows) if row.view == VIEW and row.file is not None}
    for split in (data.train, data.test):
        for study in manifest.studies(split):
            text, row = report_of(study, data.sections).strip(), first.get(study.id)
            if text and row is not None:
                file = manifest.file(row)
                assert file is not None
                texts = {"findings": "", "impression": text, "masks": {}, "boxes": ()}
                yield row.model_copy(update={**texts, "file": place(file, root)})


def _annotated(tables: Annotations, root: Path) -> Iterable[Row]:
    """The rows of the benchmark's CSVs. MIMIC-CXR's patients are told by the folders of their images."""
    of: dict[Split, Path] = {"train": tables.train, "test": tables.test}
    for split, table in of.items():
        for item in read_set(table, labels="file", images=tables.images).items:
            if item.file is None or not item.prompt.strip():
                continue
            patient = _MIMIC_PATIENT.search(item.file.as_posix())
            yield Row(
                study=item.id,
                subject=item.subject or (patient[1] if patient else item.id),
                split=split,
                view=VIEW,
                file=place(item.file, root),
                impression=item.prompt.strip(),
                labels=tuple(name for name, label in item.labels.items() if label == 1),
                source="chexpert",
            )


def answered(real: EvalSet, generated: EvalSet) -> EvalSet:
    """The real images that generated ones or written reports answer to, all where these name none."""
    named = {item.pair or item.id for item in generated.items}
    rows = [row for row, item in enumerate(real.items) if item.id in named]
    return real.subset(rows) if rows else real


@dataclass(frozen=True)
class Sources:
    """The real and the generated sets of a benchmark in ``out``; generated ones are cohorts, made when first needed."""

    plan: Plan
    out: Path
    device: str | None = None
    progress: bool = True

    @property
    def manifest(self) -> Path:
        """Of the real studies."""
        return self.out / REAL

    @cached_property
    def hash(self) -> str:
        """Of the real studies."""
        return content_hash([self.manifest])

    @cached_property
    def train(self) -> EvalSet:
        """The real training images."""
        return read_set(self.manifest, split=self.plan.data.train, pad=True, name="real training")

    @cached_property
    def test(self) -> EvalSet:
        """The real test images."""
        return read_set(self.manifest, split=self.plan.data.test, pad=True, name="real test")

    def made(self, model: Model, kind: str) -> EvalSet:
        """A model's images for ``kind``: ``test``, ``privacy`` or ``train``.

        Raises:
            NotComputed: the plan gives images of the model, but none of this kind.
            InputError: the model cannot generate frontals from text. CheckpointError, OutputError: as a cohort.
        """
        if model.sets is not None:
            path = getattr(model.sets, kind)
            if path is None:
                raise NotComputed(f"the plan gives no images of {model.name} for {kind}: add them to its sets")
            return read_set(path, pad=True, name=model.name, labels="file").with_images()
        plan = self.cohort(model, kind)
        folder = self.out / "models" / model.name / "images" / plan.name
        self.generate(plan, folder)
        return replace(read_set(folder, pad=True, name=model.name), labelled_by="annotators")

    def generate(self, plan: CohortPlan, folder: Path) -> None:
        """Finish a cohort, by several processes if they run.

        Raises:
            InputError, CheckpointError, OutputError: as :func:`xgem.cohort.run.run`.
        """
        while run(plan, folder, device=self.device, progress=self.progress).missing:
            time.sleep(_PAUSE)  # another process is making them

    def cohort(self, model: Model, kind: str) -> CohortPlan:
        """The plan of a model's cohort for ``kind``."""
        plan = self.plan
        split = plan.data.test if kind == "test" else plan.data.train
        amounts = {
            "test": (plan.fidelity.n, 1),
            "privacy": (plan.privacy.prompts, plan.privacy.seeds),
            "train": (training_prompts(plan), 1),
        }
        if kind not in amounts:
            raise InputError(f"unknown kind {kind!r} of generated set: expected one of {', '.join(amounts)}")
        limit, count = amounts[kind]
        matched = {"manifest": str(self.manifest), "split": split, "limit": limit, "count": count}
        return CohortPlan(
            **model.sampling.model_dump(),
            name=kind,
            model=model.model,
            revision=model.revision,
            outputs=(VIEW,),
            split=split,
            seed=plan.seed,
            matched=matched,  # pyright: ignore[reportArgumentType]
        )


def training_prompts(plan: Plan) -> int:
    """The number of training prompts that the parts of the plan need."""
    needs = {"classification": plan.classification.n, "reports": plan.reports.n}
    return max([needs[part] for part in plan.parts if part in needs], default=2)


def fingerprint(model: Model) -> str:
    """A hash of the checkpoint or the diffusers pipeline that a model's name stands for.

    Raises:
        CheckpointError: there is no such model. InputError: a revision of what is not on the hub.
    """
    assert model.model is not None
    if is_peer(model.model):
        return locate_peer(model.model, revision=model.revision).hash
    return file_sha256(locate(model.model, revision=model.revision).root / "model_index.json")
