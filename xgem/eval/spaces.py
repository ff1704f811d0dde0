"""Real against generated images in one feature space: distances and alignment, with references on real images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from xgem.data.sets import EvalSet
from xgem.eval.features import Features, extract
from xgem.eval.record import Metric
from xgem.eval.registry import spec
from xgem.judges.extractors import Extractor
from xgem.metrics import fidelity
from xgem.metrics.bootstrap import Estimate
from xgem.metrics.radiomics import frechet_radiomics
from xgem.types import InputError

PRDC: Final = ("precision", "recall", "density", "coverage")
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Settings:
    """Settings of the metrics of a feature space.

    ``bootstrap``: number of draws for intervals; ``frechet_draws`` for those of Frechet distances. ``k``: neighbours
    for PRDC. ``subsets``, ``subset_size``: for KID; None uses the smaller set's size, as CheXGenBench's code does.
    """

    seed: int = 0
    bootstrap: int = 1000
    frechet_draws: int = 30
    k: int = 5
    subsets: int = 100
    subset_size: int | None = 1000


@dataclass(frozen=True)
class Texts:
    """Vectors (n, d) of a set's texts; ``known`` (n,) is False where an item has no text."""

    vectors: Features
    known: Bools

    @classmethod
    def of(cls, texts: Sequence[str], extractor: Extractor) -> Texts:
        """Encode texts, identical ones once."""
        known = np.array([bool(text.strip()) for text in texts], dtype=np.bool_)
        distinct = sorted({text for text in texts if text.strip()})
        places = {text: place for place, text in enumerate(distinct)}
        vectors = np.zeros((len(texts), extractor.dim), dtype=np.float32)
        if distinct:
            vectors[known] = extractor.texts(distinct)[[places[text] for text in texts if text.strip()]]
        return cls(vectors, known)


@dataclass(frozen=True)
class Space:
    """Features of the sets, and of their texts if the space embeds texts."""

    extractor: Extractor
    settings: Settings
    real: Features
    generated: Features
    training: Features | None
    reports: Texts | None
    prompts: Texts | None

    @classmethod
    def of(
        cls,
        extractor: Extractor,
        real: EvalSet,
        generated: EvalSet,
        training: EvalSet | None,
        settings: Settings,
        cache: Path | None,
    ) -> Space:
        """Compute the features, or read them from the cache."""
        texts = extractor.encode_texts is not None
        return cls(
            extractor,
            settings,
            extract(real, extractor, cache),
            extract(generated, extractor, cache),
            extract(training, extractor, cache) if training else None,
            Texts.of(real.reports, extractor) if texts else None,
            Texts.of(generated.prompts, extractor) if texts else None,
        )

    def measure(self, rows: Bools, columns: Bools, pool: Bools | None, of: str = "") -> list[Metric]:
        """Every metric of this space on ``rows`` of the real set and ``columns`` of the generated one.

        The reference of each distance is the same distance between the real images and other real ones, at most as many
        as there are generated ones: from the training set's ``pool``, or else between two halves of the real images.
        """
        s = self.settings
        sets, yardstick, base = self._sides(rows, columns, pool)

        def fid(x: Features, y: Features) -> Mapping[str, Estimate]:
            return {"fid": fidelity.frechet_distance(x, y, seed=s.seed, draws=s.frechet_draws)}

        def kid(x: Features, y: Features) -> Mapping[str, Estimate]:
            options = {"subsets": s.subsets, "subset_size": s.subset_size, "seed": s.seed, "draws": s.bootstrap}
            return {"kid": fidelity.kernel_distance(x, y, **options)}

        def prdc(x: Features, y: Features) -> Mapping[str, Estimate]:
            manifolds = fidelity.prdc(x, y, s.k, seed=s.seed, draws=s.bootstrap)
            return {name: getattr(manifolds, name) for name in PRDC}

        used = min(*map(len, sets), s.subset_size or len(sets[0]))
        kernel = {"draws": s.bootstrap, "subsets": s.subsets, "subset_size": used}
        return [
            *self._both(fid, ("fid",), sets, yardstick, of, base | {"draws": s.frechet_draws}),
            *self._both(kid, ("kid",), sets, yardstick, of, base | kernel),
            *self._both(prdc, PRDC, sets, yardstick, of, base | {"draws": s.bootstrap, "k": s.k}),
            *self._alignment(rows, columns, of),
        ]

    def _sides(
        self, rows: Bools, columns: Bools, pool: Bools | None
    ) -> tuple[tuple[Features, Features], tuple[Features, Features], dict[str, Any]]:
        """Real and generated features, those of the reference, and the settings that say so."""
        s, real, generated = self.settings, self.real[rows], self.generated[columns]
        order = np.random.default_rng([s.seed, 2]).permutation
        if self.training is None or pool is None:
            shuffled = real[order(len(real))]
            yardstick, source = (shuffled[::2], shuffled[1::2]), "halves of the real set"
        else:
            others = self.training[pool]
            yardstick, source = (real, others[order(len(others))[: len(generated)]]), "training set"
        base = {"n_real": len(real), "n_generated": len(generated), "seed": s.seed, "yardstick": source}
        return (real, generated), yardstick, base

    def _both(
        self,
        measure: Callable[[Features, Features], Mapping[str, Estimate]],
        names: Sequence[str],
        sets: tuple[Features, Features],
        yardstick: tuple[Features, Features],
        of: str,
        settings: Mapping[str, Any],
    ) -> list[Metric]:
        """The metrics with those of real images as reference; with too few images, the reason in place of a number."""
        try:
            values = measure(*sets)
        except InputError as error:
            return [Metric.missing(name, error, **self._named(of)) for name in names]
        try:
            of_real = measure(*yardstick)
        except InputError as error:
            of_real, settings = {}, dict(settings) | {"yardstick": f"not computed: {error}"}
        return [
            Metric.measured(
                name,
                values[name],
                unpaired={"ceiling" if spec(name).higher_is_better else "floor": of_real.get(name)},
                settings=settings,
                **self._named(of),
            )
            for name in names
        ]

    def _alignment(self, rows: Bools, columns: Bools, of: str) -> list[Metric]:
        """Cosine similarity with the prompts; references are shuffled prompts, and real images with their reports."""
        if self.prompts is None or self.reports is None:
            return []
        prompted, reported = columns & self.prompts.known, rows & self.reports.known
        if prompted.sum() < 2:
            reason = f"{int(prompted.sum())} generated images have a prompt: alignment needs at least 2"
            return [Metric.missing("alignment", reason, **self._named(of))]
        options = {"seed": self.settings.seed, "draws": self.settings.bootstrap}
        sets = self.generated[prompted], self.prompts.vectors[prompted]
        references = {"shuffled": fidelity.shuffled_alignment(*sets, **options)}
        if reported.any():
            real_pairs = self.real[reported], self.reports.vectors[reported]
            references["ceiling"] = fidelity.alignment(*real_pairs, **options)
        value = fidelity.alignment(*sets, **options)
        return [Metric.measured("alignment", value, unpaired=references, settings=options, **self._named(of))]

    def _named(self, of: str) -> dict[str, Any]:
        return {"of": of, "extractor": self.extractor.name, "weights": self.extractor.weights}


class RadiomicSpace(Space):
    """Radiomic features, of which only the Frechet radiomics distance is defined."""

    def measure(self, rows: Bools, columns: Bools, pool: Bools | None, of: str = "") -> list[Metric]:
        """The distance, with that of real images as reference."""
        s = self.settings
        sets, yardstick, base = self._sides(rows, columns, pool)

        def frd(x: Features, y: Features) -> Mapping[str, Estimate]:
            return {"frd": frechet_radiomics(x, y, seed=s.seed, draws=s.frechet_draws)}

        return self._both(frd, ("frd",), sets, yardstick, of, base | {"draws": s.frechet_draws})
