"""Multi-Prompt Training: the draw, as a property; and that the diffusion stages' batches obey it."""

from __future__ import annotations

import itertools
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.train.batches import batch_of
from xgem.convert.random_init import random_checkpoint
from xgem.train.banks import PromptBank, TargetBank
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus, draw_prompts
from xgem.train.diffusion import DiffusionStage
from xgem.train.share import fixed_rngs

NAMES = ("frontal", "lateral", "report", "ecg")
presents = st.lists(st.sampled_from(NAMES), unique=True)
# Chi-square values that one draw in 100,000 exceeds, by degrees of freedom.
CRITICAL = {1: 19.5, 2: 23.0, 6: 33.1}


def subsets(names: set[str]) -> list[frozenset[str]]:
    return [frozenset(c) for k in range(1, len(names) + 1) for c in itertools.combinations(sorted(names), k)]


def assert_uniform(drawn: list[frozenset[str]], possible: list[frozenset[str]]) -> None:
    counts = Counter(drawn)
    assert set(counts) <= set(possible)
    if len(possible) == 1:
        return
    expected = len(drawn) / len(possible)
    statistic = sum((counts[subset] - expected) ** 2 / expected for subset in possible)
    assert statistic < CRITICAL[len(possible) - 1], counts


@given(presents, st.sampled_from(NAMES), st.integers(0, 2**32), st.floats(0, 1))
def test_only_what_is_present_and_never_the_target(present: list[str], target: str, seed: int, null: float) -> None:
    rng = random.Random(seed)
    for _ in range(20):
        drawn = draw_prompts(present, target, rng, null)
        assert target not in drawn
        assert drawn <= set(present)


@given(presents, st.sampled_from(NAMES), st.integers(0, 2**32))
def test_empty_only_where_nothing_else_is_present(present: list[str], target: str, seed: int) -> None:
    assert bool(draw_prompts(present, target, random.Random(seed), 0.0)) == bool(set(present) - {target})
    assert draw_prompts(present, target, random.Random(seed), 1.0) == frozenset()


@given(st.permutations(NAMES), st.integers(0, 2**32))
def test_the_order_of_what_is_present_is_irrelevant(present: list[str], seed: int) -> None:
    drawn = draw_prompts(present, "report", random.Random(seed), 0.1)
    assert drawn == draw_prompts(NAMES, "report", random.Random(seed), 0.1)


@pytest.mark.parametrize("present", [s for k in (1, 2, 3, 4) for s in itertools.combinations(NAMES, k)], ids="-".join)
def test_every_subset_is_as_likely_as_any_other(present: tuple[str, ...]) -> None:
    rng = random.Random(1)
    for target in present:
        possible = subsets(set(present) - {target})
        if possible:
            assert_uniform([draw_prompts(present, target, rng, 0.0) for _ in range(3000)], possible)


@pytest.mark.parametrize("null", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_null_contexts(null: float) -> None:
    rng = random.Random(2)
    drawn = [draw_prompts(NAMES, "frontal", rng, null) for _ in range(8000)]
    found = sum(not subset for subset in drawn) / len(drawn)
    assert abs(found - null) <= 4.5 * (null * (1 - null) / len(drawn)) ** 0.5
    if null < 1:
        assert_uniform([subset for subset in drawn if subset], subsets(set[str](NAMES) - {"frontal"}))


# ------------------------------------------------------------------------------------- the stages that use it


@pytest.fixture(scope="module", params=["frontal", "lateral", "report"])
def stage(
    request: pytest.FixtureRequest,
    debug_preset: Any,
    corpora: tuple[Corpus, Corpus],
    tmp_path_factory: pytest.TempPathFactory,
) -> DiffusionStage:
    root = tmp_path_factory.mktemp("model") / "random"
    random_checkpoint(root, debug_preset)
    return DiffusionStage(StageContext(debug_preset, *corpora, root, seed=0), request.param)


def has(corpus: Corpus, index: int, name: str) -> bool:
    return bool(corpus.texts(index)) if name == "report" else bool(corpus.rows(index, name))


def test_banks_know_what_each_study_has(stage: DiffusionStage, corpora: tuple[Corpus, Corpus]) -> None:
    train, _ = corpora
    for name, bank in [*stage.train.prompts.items(), (stage.target, stage.train.targets)]:
        assert [bool(own) for own in bank.rows] == [has(train, index, name) for index in range(len(train.studies))]
        rows = [row for own in bank.rows for row in own]
        assert isinstance(bank, PromptBank | TargetBank)
        count = len(bank.pooled if isinstance(bank, PromptBank) else bank.latents)
        assert rows == list(range(count))  # every row belongs to one study
    assert list(stage.usable) == [i for i in range(len(train.studies)) if has(train, i, stage.target)]
    assert len(stage.usable) < len(train.studies)


def test_the_target_is_no_prompt(stage: DiffusionStage) -> None:
    assert stage.target not in stage.prompts
    others = {"frontal", "lateral", "report"} - {stage.target}
    assert set(batch_of(stage, 0)["encoded"]) == set(stage.prompts) == others


def test_batches_draw_uniformly_from_what_each_study_has(stage: DiffusionStage, corpora: tuple[Corpus, Corpus]) -> None:
    train, _ = corpora
    indices = [index for index in stage.usable for _ in range(250)]
    batch = stage._collate(stage.train, indices, fixed_rngs(3, count=len(indices)))
    by_presence: dict[frozenset[str], list[frozenset[str]]] = {}
    nulls = 0
    possible_nulls = 0
    for position, index in enumerate(indices):
        chosen = frozenset(name for name in stage.prompts if batch["keep"][name][position])
        present = frozenset(name for name in stage.prompts if has(train, index, name))
        assert chosen <= present
        if present:
            possible_nulls += 1
            nulls += not chosen
            if chosen:
                by_presence.setdefault(present, []).append(chosen)
        for name in chosen:  # what is handed over as this prompt is the study's own
            own = stage.train.prompts[name].encoded(stage.train.prompts[name].rows[index])
            assert (own.pooled == batch["encoded"][name].pooled[position]).all(dim=1).any()
        latents = stage.train.targets.take(stage.train.targets.rows[index])
        assert (latents == batch["z0"][position]).flatten(1).all(dim=1).any()
    share = nulls / possible_nulls
    assert abs(share - 0.1) <= 4.5 * (0.09 / possible_nulls) ** 0.5
    assert len(by_presence) == 3  # both prompts, only the one, only the other
    for present, drawn in by_presence.items():
        assert_uniform(drawn, subsets(set(present)))


def test_batches_follow_from_the_numbers_of_their_samples(stage: DiffusionStage) -> None:
    one, again, later, other = (batch_of(stage, *place) for place in ((3, 0, 2), (3, 0, 2), (4, 0, 2), (3, 2, 2)))
    assert torch.equal(one["z0"], again["z0"])
    assert all(torch.equal(one["keep"][name], again["keep"][name]) for name in stage.prompts)
    assert all(torch.equal(one["encoded"][n].pooled, again["encoded"][n].pooled) for n in stage.prompts)
    assert not torch.equal(one["z0"], later["z0"])
    assert not torch.equal(one["z0"], other["z0"])


def test_the_loss_is_finite_whatever_is_dropped(stage: DiffusionStage) -> None:
    for step in range(4):
        loss, _ = stage.loss(stage.module, batch_of(stage, step))
        assert torch.isfinite(loss)
    figures = []
    for _ in range(2):
        torch.manual_seed(4)  # as the loop does before it validates
        with torch.no_grad():
            figures.append(stage.validate(stage.module))
    assert figures[0] == figures[1]
    assert 0 < figures[0]["loss"] < 100


@given(presents, st.sampled_from(NAMES), st.integers(0, 2**32))
def test_a_single_prompt_is_one_and_not_the_target(present: list[str], target: str, seed: int) -> None:
    drawn = draw_prompts(present, target, random.Random(seed), 0.0, single=True)
    assert len(drawn) == bool(set(present) - {target})
    assert target not in drawn
    assert drawn <= set(present)


def test_single_prompts_are_drawn_uniformly() -> None:
    rng = random.Random(0)
    drawn = [draw_prompts(NAMES, "report", rng, 0.0, single=True) for _ in range(3000)]
    assert_uniform(drawn, [frozenset([name]) for name in NAMES if name != "report"])


def test_a_stage_without_multi_prompt_training_gives_each_sample_one_prompt(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], tmp_path: Any
) -> None:
    root = tmp_path / "checkpoint"
    random_checkpoint(root, debug_preset)
    config = debug_preset.train["frontal"].model_copy(update={"loss": {"single": 1}})
    preset = debug_preset.model_copy(update={"train": debug_preset.train | {"frontal": config}})
    stage = DiffusionStage(StageContext(preset, *corpora, root, 0), "frontal")
    kept = torch.stack([torch.stack(list(batch_of(stage, step)["keep"].values())) for step in range(40)])
    assert int(kept.sum(dim=1).max()) == 1  # (steps, prompts, b): never two prompts of a sample
    assert kept.any(dim=(0, 2)).all()  # but each of them in turn
