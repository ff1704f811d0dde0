"""Does a frontal show what a sentence asked for? A fixed list of sentences, several seeds (``xgem eval prompts``)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from xgem.checkpoints.locate import DEFAULT_MODEL
from xgem.data.manifest import Manifest
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, Images
from xgem.data.study import Study
from xgem.eval.cohorts import Sampling, at_least
from xgem.eval.families.prompts import Looks, Malformed, RealImages, evaluate
from xgem.eval.features import extract
from xgem.eval.instruments import or_reason
from xgem.eval.record import FamilyResult
from xgem.eval.sentences import SENTENCES, Sentence, check_sentences
from xgem.judges.extractors import Extractor, open_extractor
from xgem.judges.malformed import Neighbourhood, beyond_any, grey_statistics
from xgem.judges.saved import open_judge
from xgem.judges.sides import SideJudge, sides_of
from xgem.labels.sides import Side, boxed_sides, named_sides
from xgem.metrics.bootstrap import Bootstrap, Sampled
from xgem.pipeline.embedding import Evaluated, open_model
from xgem.types import CheckpointError, DataError, InputError, NotComputed, OutputError
from xgem.utils import sheets
from xgem.utils.cache import evaluation_cache
from xgem.utils.devices import resolve_device
from xgem.utils.files import replacing, write_json
from xgem.utils.progress import StepBar

VIEW: Final = "frontal"
PICTURES: Final = "pictures"
"""Folder of the generated images in that of the results, one folder for each sentence."""
RECORD: Final = "pictures.json"
FEATURES: Final = "mobilenet-v2"
"""The space in which malformed images are found: no training touches it."""
MOST_TRAINING: Final = 1000
"""Training images, drawn by the seed, that say what real ones look like; more change little."""
FEWEST: Final = 8
_ON_SHEET: Final = 6


@dataclass(frozen=True)
class PromptSettings:
    """Settings of an evaluation by sentences.

    Attributes:
        sampling: ``limit`` is not used.
        seeds: images of each sentence; the k-th of every sentence starts from the same noise.
        judge: of findings, as for :func:`xgem.judges.saved.open_judge`. ``sides``: a folder that
            ``benchmarks/sides.py`` made; None takes the judge of sides that ships with xgem.
    """

    sampling: Sampling = field(default_factory=Sampling)
    seeds: int = 16
    bootstrap: int = 1000
    judge: str | None = None
    sides: Path | None = None

    def __post_init__(self) -> None:
        at_least("seeds", self.seeds, 2)
        at_least("bootstrap", self.bootstrap, 1)


def evaluate_prompts(
    model: str | None,
    data: Path,
    out: Path,
    *,
    split: str = "val",
    settings: PromptSettings | None = None,
    sentences: Sequence[Sentence] = SENTENCES,
    cache: Path | None = None,
    device: str | None = None,
    dtype: str | None = None,
    progress: bool = True,
) -> tuple[dict[str, Any], list[FamilyResult]]:
    """Generate frontals from each sentence alone, and measure what they show.

    Args:
        model: name, folder or hub id of a model that makes frontals from text; the embedded default.
        data: a manifest. Its studies of ``split`` give the ceilings, those of training say what real images look like.
        out: receives the images, where they are resumed, and a contact sheet of sentences and seeds.

    Returns:
        the settings, and one result of the family ``prompts``.

    Raises:
        InputError: the split is that of training, or the model makes no frontals from text. DataError: too few real
            images, or sentences that cannot be used. OutputError: ``out`` holds images of another model or settings.
        CheckpointError, ManifestError: the model or the manifest cannot be used.
    """
    settings = settings or PromptSettings()
    if split == "train":
        raise InputError("split 'train': judges were trained on it; use val or test")
    check_sentences(sentences)
    opened = open_model(model or DEFAULT_MODEL, device=device, dtype=dtype, compile=settings.sampling.compile)
    if VIEW not in opened.images or "report" not in opened.inputs:
        raise InputError(
            f"{opened.name}: takes {', '.join(opened.inputs)} and makes {', '.join(opened.modalities)}; expected "
            "a model of frontals from reports"
        )
    folder, place = cache or evaluation_cache(), str(resolve_device(device))
    # Real images first: what cannot be used is said before anything is generated
    held_out = _real(data, split)
    pictures = make_pictures(opened, sentences, settings, out / PICTURES, progress=progress)
    size = pictures.shape[-1]
    real = RealImages(held_out.images(size), _known(held_out), _sides(data, split, held_out))
    malformed = or_reason(
        lambda: _malformed(data, held_out, real.images, size, folder, place, settings), DataError, InputError
    )
    looks = Looks(
        or_reason(lambda: open_judge(settings.judge, VIEW, _training(data), cache=folder, device=place), DataError),
        or_reason(lambda: SideJudge.load(*([settings.sides] if settings.sides else []), device=place), CheckpointError),
        malformed if isinstance(malformed, NotComputed) else malformed[0],
        {} if isinstance(malformed, NotComputed) else malformed[1],
    )
    result = evaluate(pictures, sentences, looks, real, draws=settings.bootstrap, seed=settings.sampling.seed)
    columns: list[tuple[str, Any]] = [("asked", [sentence.text for sentence in sentences])]
    columns += [(f"seed {k + 1}", pictures[:, k]) for k in range(min(_ON_SHEET, pictures.shape[1]))]
    sheets.write_sheet(out / "prompts.png", columns, rows=len(sentences))
    about = {
        "model": {"name": opened.name, "hash": opened.hash},
        "split": split,
        **{key: value for key, value in asdict(settings).items() if key not in ("sampling", "sides")},
        "sampling": _sampling(opened, settings),
        "features": FEATURES,
    }
    return about, [result]


def _sampling(model: Evaluated, settings: PromptSettings) -> dict[str, Any]:
    chosen = {key: value for key, value in asdict(settings.sampling).items() if value is not None}
    return {**model.sampling, **chosen}


def make_pictures(
    model: Evaluated,
    sentences: Sequence[Sentence],
    settings: PromptSettings,
    folder: Path,
    *,
    progress: bool = True,
) -> Images:
    """Images (sentences, seeds, s, s) of each sentence; those that are in ``folder`` already are read.

    Raises:
        OutputError: the folder holds images of another model, other sentences or settings.
    """
    sampling = settings.sampling
    made_with = {
        "model": model.hash,
        "sentences": [sentence.text for sentence in sentences],
        "seeds": settings.seeds,
        "sampling": _sampling(model, settings),
    }
    _check_record(folder, made_with)
    options = {name: value for name, value in asdict(sampling).items() if name not in ("limit", "compile")}
    options |= {"num_samples": settings.seeds, "progress": False}
    rows: list[Images] = []
    with StepBar("generating", len(sentences), shown=progress) as bar:
        for k, sentence in enumerate(sentences):
            own = folder / f"{k:03d}"
            if not own.is_dir():
                model.pipe({"report": sentence.text}, [VIEW], **options).save(own)
            files = sorted(own.glob(f"{VIEW}-*.png"))
            if len(files) != settings.seeds:
                raise OutputError(f"{own}: has {len(files)} images, expected {settings.seeds}; delete the folder")
            rows.append(np.stack([np.asarray(Image.open(file).convert("L")) for file in files]))
            bar.advance()
    return np.stack(rows)


def _check_record(folder: Path, made_with: Mapping[str, Any]) -> None:
    """Write what the images are made with, or refuse a folder of others."""
    record = folder / RECORD
    wanted = json.loads(json.dumps(made_with))
    try:
        if record.is_file():
            if json.loads(record.read_text(encoding="utf-8")) != wanted:
                raise OutputError(
                    f"{folder}: holds images of another model, other sentences or settings; choose another --out, or "
                    "delete it"
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(record) as partial:
            write_json(partial, wanted)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be used ({error}); choose another --out") from error


def _real(data: Path, split: str) -> EvalSet:
    found = read_set(data, split=split, view=VIEW, pad=True, name=f"real, {split}").with_images()
    if len(found) < FEWEST:
        raise DataError(f"{data}: split {split!r} has {len(found)} frontals: expected at least {FEWEST}")
    return found


def _training(data: Path) -> EvalSet:
    return read_set(data, split="train", view=VIEW, pad=True, name="training").with_images()


def _known(items: EvalSet) -> NDArray[np.float64]:
    """(n, 14) labels of 1, 0, and NaN where they are unknown or uncertain."""
    labels = items.labels()
    labels[labels == -1] = np.nan
    return labels


def _sides(data: Path, split: str, items: EvalSet) -> NDArray[np.float64]:
    """(n, groups): the one side that boxes, or else the report, name for each image."""
    by_file = {study.images[VIEW][0]: study for study in Manifest.read(data).studies(split) if VIEW in study.images}
    named = [sides_named(by_file[item.file]) if item.file in by_file else {} for item in items.items]
    return sides_of(named)


def sides_named(study: Study) -> dict[str, frozenset[Side]]:
    """The sides of a study's findings: by its boxes where there are any, else by its report."""
    return boxed_sides(study.boxes) if study.boxes else named_sides(f"{study.findings}\n{study.impression}")


def _malformed(
    data: Path, held_out: EvalSet, images: Images, size: int, cache: Path, device: str, settings: PromptSettings
) -> tuple[Malformed, dict[str, Sampled]]:
    """What finds malformed images of this size, and the share of them among real ones.

    One half of the held-out images sets the thresholds, the other is the floor.
    """
    extractor = open_extractor(FEATURES, device=device)
    training = _training(data)
    drawn = np.random.default_rng([settings.sampling.seed, 7]).permutation(len(training))[:MOST_TRAINING]
    training = training.subset(np.sort(drawn))
    vectors = {"features": extract(held_out, extractor, cache, size=size), "grey levels": grey_statistics(images)}
    known = {
        "features": extract(training, extractor, cache, size=size),
        "grey levels": np.concatenate([grey_statistics(batch) for batch in training.batches(size)]),
    }
    order = np.random.default_rng([settings.sampling.seed, 6]).permutation(len(held_out))
    first, second = order[::2], order[1::2]
    spaces = {
        name: Neighbourhood.fitted(known[name], vectors[name][first], scaled=name != "features") for name in vectors
    }
    rest = beyond_any(spaces, {name: values[second] for name, values in vectors.items()})
    bootstrap = Bootstrap(len(second), draws=settings.bootstrap, seed=settings.sampling.seed)
    floors = {name: bootstrap.mean(values.astype(np.float64)) for name, values in rest.items()}
    return (lambda found: beyond_any(spaces, _vectors(found, extractor))), floors


def _vectors(images: Images, extractor: Extractor, batch_size: int = 64) -> dict[str, NDArray[Any]]:
    starts = range(0, len(images), batch_size)
    features = np.concatenate([extractor(images[start : start + batch_size]) for start in starts])
    return {"features": features, "grey levels": grey_statistics(images)}
