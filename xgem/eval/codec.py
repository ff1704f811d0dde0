"""What is lost of reports by the report codec alone (``xgem eval codec``): no generator behind it can do better."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.manifest import Manifest
from xgem.data.study import Study, report_of
from xgem.eval.record import Example, FamilyResult, Metric
from xgem.labels.sentences import written_sentences
from xgem.labels.vocabulary import NO_FINDING, annotated_labels
from xgem.metrics import text
from xgem.metrics.bootstrap import Array, Bootstrap
from xgem.modalities import get_modality
from xgem.pipeline.pipeline import XgemPipeline
from xgem.types import DataError, InputError

FEWEST: Final = 5
_LENGTHS: Final = ((1, 5), (6, 15), (16, None))
"""Groups of reports, by their number of words."""
_EXAMPLES: Final = 12


@dataclass(frozen=True)
class _Coded:
    """Real reports, what the codec makes of them, and the studies."""

    studies: Sequence[Study]
    real: list[str]
    decoded: list[str]


def evaluate_codec(
    model: str | None,
    data: Path,
    *,
    split: str = "val",
    draws: int = 1000,
    seed: int = 0,
    device: str | None = None,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """Encode and decode the real reports of a split: exact ones, words, and words that no training report has.

    For all reports, for those of studies without and with findings as annotated, and by length.

    Args:
        model: name, folder or hub id of a checkpoint that makes reports; the embedded default.
        data: a manifest; its training reports are the vocabulary.

    Raises:
        InputError: the model makes no reports. DataError: too few reports, or none for training.
        CheckpointError, ManifestError: the model or the manifest cannot be used.
    """
    pipe = XgemPipeline.from_pretrained(model, device=device)
    preset = pipe.preset
    name = next((one for one in preset.outputs if not get_modality(one).is_image), None)
    if name is None:
        raise InputError(f"{pipe.name}: makes {', '.join(preset.outputs)}; expected a model that makes reports")
    manifest = Manifest.read(data)
    training, real = (_reports(manifest, one, preset.report_sections) for one in ("train", split))
    known = text.vocabulary(report for _, report in training)
    for wanted, found in (("train", len(training)), (split, len(real))):
        if found < FEWEST:
            raise DataError(f"{data}: split {wanted!r} has {found} reports; expected at least {FEWEST}")
    reports = [report for _, report in real]
    coded = _Coded([study for study, _ in real], reports, pipe.reconstruct_reports(name, reports))
    about = {
        "model": {"name": pipe.name, "hash": pipe.hash},
        "split": split,
        "sections": list(preset.report_sections),
        "seed": seed,
        "bootstrap": f"{draws} resamplings of studies",
        "training vocabulary": len(known),
        "share of sentences that a training report has": _recurring(reports, [report for _, report in training]),
    }
    return about, [_measured(coded, known, draws, seed)]


def _reports(manifest: Manifest, split: str, sections: Sequence[str]) -> list[tuple[Study, str]]:
    pairs = ((study, report_of(study, sections)) for study in manifest.studies(split))
    return [(study, report) for study, report in pairs if report]


def _recurring(reports: Sequence[str], training: Sequence[str]) -> float:
    known = {sentence for report in training for sentence in written_sentences(report)}
    return float(np.mean([sentence in known for report in reports for sentence in written_sentences(report)]))


def _measured(coded: _Coded, known: frozenset[str], draws: int, seed: int) -> FamilyResult:
    exact = np.array([a == b for a, b in zip(coded.real, coded.decoded, strict=True)], dtype=np.float64)  # (n,)
    overlap = text.word_f1(coded.decoded, coded.real)
    metrics: list[Metric] = []
    for group, rows in _groups(coded).items():
        if len(rows) < FEWEST:
            reason = f"{len(rows)} reports, expected at least {FEWEST}"
            metrics += [Metric.missing(key, reason, of=group) for key in ("codec_exact", "codec_word_f1", "non_words")]
            continue
        bootstrap = Bootstrap(len(rows), draws=draws, seed=seed)
        decoded, real = ([texts[k] for k in rows] for texts in (coded.decoded, coded.real))
        unknown, of_real = text.compare_unknown(decoded, real, known, bootstrap)
        metrics += [
            Metric.measured("codec_exact", bootstrap.mean(exact[rows]), of=group),
            Metric.measured("codec_word_f1", bootstrap.mean(overlap[rows]), of=group),
            Metric.measured("non_words", unknown, paired={"real": of_real}, of=group),
        ]
    strange = text.unknown_words(coded.decoded, known)
    details = {"words outside the training vocabulary": sorted({word for words in strange for word in words})}
    return FamilyResult(
        "text", metrics, {"n": len(coded.real)}, details=details, examples=_worst(coded, overlap), route="report codec"
    )


def _groups(coded: _Coded) -> dict[str, NDArray[np.int64]]:
    """Rows of all reports, of those without and with annotated findings, and of those of each length."""
    normal = np.array([annotated_labels(study.labels, study.source).get(NO_FINDING) for study in coded.studies])
    length = np.array([len(report.split()) for report in coded.real])
    groups = {
        "all": np.arange(len(length)),
        "normal": np.flatnonzero(normal == 1),
        "abnormal": np.flatnonzero(normal == 0),
    }
    for low, high in _LENGTHS:
        name = f"{low} words or more" if high is None else f"{low} to {high} words"
        groups[name] = np.flatnonzero((length >= low) & (length <= (high or length.max())))
    return groups


def _worst(coded: _Coded, overlap: Array) -> list[Example]:
    """The reports that lose most words."""
    rows = np.argsort(overlap, kind="stable")[:_EXAMPLES]
    return [Example(f"{coded.studies[k].id}. Real: {coded.real[k]} Decoded: {coded.decoded[k]}", []) for k in rows]
