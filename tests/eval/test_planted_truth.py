"""Two made-up generators, one whose image and report are coupled and one whose are not, are told apart.

Every study has a hidden finding that is present with probability P. A request draws whether the outputs show it; a
coupled generator draws once for image and report, an uncoupled one twice. So the expected Hamming distance of the label
sets is known: 0 where the outputs are coupled, ``2 p (1 - p)`` where they are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from xgem.data.sets import EvalSet, Item
from xgem.eval.combine import averaged, beside, beside_best
from xgem.eval.families import consistency, text
from xgem.eval.families.consistency import INDEPENDENT, REAL, View, evaluate, evaluate_outputs
from xgem.eval.record import FamilyResult, Metric
from xgem.judges.judge import scores_of, thresholds_of
from xgem.judges.report_labellers import RuleLabeller
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.pipeline.embedding import PromptEncoders

N, SIZE, P, DRAWS = 160, 32, 0.4, 400
FINDING, AFFIRMED, CLEAR = "Edema", "Pulmonary edema is present.", "Clear lungs."
UNCOUPLED = 2 * P * (1 - P)


@dataclass(frozen=True)
class Brightness:
    """A judge that reads the finding off the image without error."""

    name: str = "brightness"
    weights: str = "0"
    size: int = SIZE
    classes: tuple[str, ...] = (FINDING,)

    def scores(self, images: np.ndarray) -> np.ndarray:
        return images.mean(axis=(1, 2))[:, None] / 255


ENCODERS = PromptEncoders(
    "planted",
    "0",
    SIZE,
    lambda images: np.stack([Brightness().scores(images)[:, 0] - 0.5, np.full(len(images), 0.1)], axis=1),
    lambda reports: np.array([[0.2 if report == AFFIRMED else -0.2, 0.1] for report in reports]),
)
VIEWS = {"frontal": View(ENCODERS, {"brightness": Brightness()})}


def made(folder: Path, name: str, shown: np.ndarray, told: np.ndarray) -> EvalSet:
    """Items whose images show and whose reports state a finding; (n,) bool each, one generation per study."""
    (folder / name).mkdir()
    items: list[Item] = []
    for i, (light, words) in enumerate(zip(shown, told, strict=True)):
        file = folder / name / f"{i:03d}-frontal.npy"
        np.save(file, ((200 if light else 50) + np.linspace(-20, 20, SIZE * SIZE)).astype(np.uint8).reshape(SIZE, SIZE))
        items.append(Item(f"{name}-{i}", file, pair=f"{i}", report=AFFIRMED if words else CLEAR))
    return EvalSet(name, tuple(items))


@dataclass(frozen=True)
class World:
    """Real studies, and the generations of a coupled and of two uncoupled generators."""

    real: EvalSet
    coupled: EvalSet
    uncoupled: EvalSet
    apart: EvalSet


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder, rng = tmp_path_factory.mktemp("planted"), np.random.default_rng(1)
    draw = iter([rng.random(N) < P for _ in range(8)])
    truth, both = next(draw), next(draw)
    real = made(folder, "real", truth, truth)
    return World(
        EvalSet("real", tuple(Item(f"{i}", item.file, report=item.report) for i, item in enumerate(real.items))),
        made(folder, "coupled", both, both),
        made(folder, "uncoupled", next(draw), next(draw)),
        made(folder, "apart", next(draw), next(draw)),
    )


def measured(real: EvalSet, generated: EvalSet, independent: EvalSet) -> FamilyResult:
    def outputs(items: EvalSet) -> dict[str, EvalSet]:
        return {"frontal": items, "report": items}

    return evaluate_outputs(
        outputs(real), outputs(generated), views=VIEWS, independent=outputs(independent), draws=DRAWS
    )


def difference(metric: Metric, name: str) -> Any:
    found = metric.references[name].difference
    assert found is not None
    return found


def test_a_coupled_generator_is_told_from_independent_outputs(world: World) -> None:
    found = measured(world.real, world.coupled, world.apart)
    distance, cosine = found["hamming"], found["cosine"]
    assert distance.value is not None
    assert distance.value.value == 0
    # Joint minus independent: negative is better, the expected distance apart, and clear of zero
    apart = difference(distance, INDEPENDENT)
    assert apart.value == pytest.approx(-UNCOUPLED, abs=3 * np.sqrt(UNCOUPLED * (1 - UNCOUPLED) / N))
    assert apart.high < 0
    assert difference(cosine, INDEPENDENT).low > 0
    assert difference(distance, "shuffled").high < 0
    for metric in (distance, cosine):
        p = metric.references[INDEPENDENT].p
        assert p is not None
        assert p < 1e-6
    assert not distance.higher_is_better
    assert cosine.higher_is_better
    assert distance.references[REAL].value.value == 0


def test_an_uncoupled_generator_is_not(world: World) -> None:
    found = measured(world.real, world.uncoupled, world.apart)
    distance = found["hamming"]
    assert distance.value is not None
    assert distance.value.value == pytest.approx(UNCOUPLED, abs=0.12)
    for metric in (distance, found["cosine"]):
        for name in (INDEPENDENT, "shuffled"):
            assert difference(metric, name).low < 0 < difference(metric, name).high, (metric.name, name)
        p = metric.references[INDEPENDENT].p
        assert p is not None
        assert p > 0.05


def test_one_number_by_two_paths(world: World) -> None:
    """The Hamming distance of `eval consistency`, of `eval joint`, and by hand; with its difference."""
    by_joint = measured(world.real, world.coupled, world.apart)["hamming"]
    by_set = evaluate(
        world.real,
        world.coupled,
        encoders=ENCODERS,
        judges={"brightness": Brightness()},
        independent=world.apart,
        draws=DRAWS,
    )["hamming"]
    assert by_joint.value == by_set.value
    assert by_joint.references.keys() == by_set.references.keys()
    for name, reference in by_joint.references.items():
        assert (reference.value, reference.difference) == (
            by_set.references[name].value,
            by_set.references[name].difference,
        )

    def by_hand(items: EvalSet) -> np.ndarray:
        image = scores_of(Brightness(), items)[:, 0] > thresholds_of(Brightness())[0]
        column = RuleLabeller().label(items.reports)[:, CHEXPERT_CLASSES.index(FINDING)]
        return (image != (column == 1)).astype(float)

    values = by_hand(world.coupled) - by_hand(world.apart)
    assert difference(by_joint, INDEPENDENT).value == pytest.approx(values.mean())


def test_the_mean_over_samples_halves_nothing_but_the_noise(world: World, tmp_path: Path) -> None:
    """Several samples of a study: the expected distance stays, and every study counts once."""
    rng = np.random.default_rng(7)
    parts = [made(tmp_path, f"s{k}", rng.random(N) < P, rng.random(N) < P) for k in range(4)]
    several = EvalSet("several", tuple(item for part in parts for item in part.items))
    found = measured(world.real, several, world.apart)
    assert found.settings["pairs"] == "mean of 4 samples per study"
    value, single = found["hamming"].value, measured(world.real, parts[0], world.apart)["hamming"].value
    assert value is not None
    assert single is not None
    assert value.n == N
    assert value.value == pytest.approx(UNCOUPLED, abs=0.06)
    assert value.high - value.low < 0.7 * (single.high - single.low)
    counts = found.details["hamming, brightness: studies at distance 0, 1, ..."]
    assert sum(counts["generated"]) == pytest.approx(N)


def test_results_on_the_same_studies_are_compared_in_pairs(world: World) -> None:
    """`beside` gives the difference that the studies' own values give, and knows what is better."""
    good = text.evaluate(world.real, world.coupled, draws=DRAWS)
    same = beside(good, {"again": good})
    for metric in same.metrics:
        if metric.value is not None and np.isfinite(metric.value.low):
            assert metric.references["again"].difference is not None
            assert metric.references["again"].difference.value == 0
    rng = np.random.default_rng(3)
    perfect = EvalSet(
        "perfect", tuple(Item(f"p{i}", pair=item.id, report=item.report) for i, item in enumerate(world.real.items))
    )
    noisy = EvalSet(
        "noisy",
        tuple(
            Item(f"n{i}", pair=item.id, report=item.report if rng.random() < 0.5 else CLEAR)
            for i, item in enumerate(world.real.items)
        ),
    )
    results = {name: text.evaluate(world.real, one, draws=DRAWS) for name, one in (("p", perfect), ("n", noisy))}
    metric = beside_best(good, results)["rouge_l"]
    assert set(metric.references) & {"p", "n"} == {"p"}
    assert difference(metric, "p").high < 0


def test_averages_of_results_are_means_with_the_interval_of_the_mean(world: World) -> None:
    first, second = (text.evaluate(world.real, one, draws=DRAWS) for one in (world.coupled, world.apart))
    both = averaged([first, second])
    one, other, mean = (result["rouge_l"].value for result in (first, second, both))
    assert one is not None
    assert other is not None
    assert mean is not None
    assert mean.value == pytest.approx((one.value + other.value) / 2)
    assert mean.high - mean.low < max(one.high - one.low, other.high - other.low)
    shuffled = difference(both["rouge_l"], "shuffled")
    assert shuffled.value == pytest.approx(
        np.mean([difference(result["rouge_l"], "shuffled").value for result in (first, second)])
    )


def test_real_pairs_are_the_real_studies_own(world: World) -> None:
    found = measured(world.real, world.uncoupled, world.apart)
    assert found["hamming"].references[REAL].value.value == 0
    assert found["cosine"].references[REAL].value.value > 0.8
    assert consistency.CASES in found.tables
