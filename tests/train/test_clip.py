"""The contrastive stage's labels: which are learned, from whom, and that unannotated studies say nothing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss

from tests.train.batches import batch_of
from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.encoders.contrastive import info_nce
from xgem.train.clip import ClipStage, common_labels
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.share import fixed_rngs
from xgem.types import ConfigError


def stage_of(preset: Preset, corpora: tuple[Corpus, Corpus], weight: float) -> ClipStage:
    torch.manual_seed(0)
    config = preset.train["clip"].model_copy(update={"loss": {"labels": weight}, "batch_size": 8})
    preset = preset.model_copy(update={"train": {"clip": config}})
    return ClipStage(StageContext(preset, *corpora, Path("root"), seed=0))


def test_only_common_labels_are_learned(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert common_labels(corpora[0]) == []  # 21 studies, three labels
    assert stage_of(debug_preset, corpora, 1.0).module.labels is None
    monkeypatch.setattr("xgem.train.clip._COMMON", 6)
    counts = {
        name: sum(name in study.labels for study in corpora[0].studies)
        for name in ("normal", "Pleural Effusion", "Cardiomegaly")
    }
    assert common_labels(corpora[0]) == sorted(name for name, count in counts.items() if count >= 6)
    assert stage_of(debug_preset, corpora, 0.0).module.labels is None


def test_the_labels_loss_is_the_annotated_studies_cross_entropy(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgem.train.clip._COMMON", 5)
    stage = stage_of(debug_preset, corpora, 2.0)
    module: Any = stage.module.eval()
    batch = batch_of(stage, 0)
    loss, logged = stage.loss(module, batch)
    logits = module(batch["images"], batch["ids"])[4]
    owners = [owner for name in ("frontal", "lateral", "report") for owner in batch["owner"][name].tolist()]
    terms = []
    for row, owner in enumerate(owners):
        for column in range(len(stage.labels)):
            truth = batch["labels"][owner, column]  # a text's are its study's
            if torch.isfinite(truth):
                p = torch.sigmoid(logits[row, column])
                terms.append(-torch.log(p if truth == 1 else 1 - p))
    assert 0 < len(terms) < len(owners) * len(stage.labels)  # some studies are not annotated
    torch.testing.assert_close(logged["labels"], torch.stack(terms).mean().detach())
    parts = [logged[name] for name in logged if "-" in name]
    torch.testing.assert_close(loss.detach(), torch.stack(parts).mean() + logged["patches"] + 2.0 * logged["labels"])
    loss.backward()
    assert module.labels is not None
    assert float(module.labels.weight.grad.abs().sum()) > 0


def test_labels_reach_both_encoders(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xgem.train.clip._COMMON", 5)
    stage = stage_of(debug_preset, corpora, 1.0)
    batch = batch_of(stage, 0)
    logits = stage.module(batch["images"], batch["ids"])[4]
    for rows, encoder in ((logits[: len(batch["images"])], "image"), (logits[len(batch["images"]) :], "text")):
        stage.module.zero_grad()
        rows.sum().backward(retain_graph=True)
        touched = {
            name.split(".")[0]
            for name, parameter in stage.module.named_parameters()
            if parameter.grad is not None and float(parameter.grad.abs().sum()) > 0
        }
        assert touched == {encoder, "labels"}


def test_what_stands_in_front_of_a_text_is_learned_where_it_stands_there(
    debug_preset: Any, corpora: tuple[Corpus, Corpus], toy: Path, tmp_path: Path
) -> None:
    record = debug_preset.model_dump(mode="json")
    record["modalities"] |= {"demographics": {"joins": "report"}}
    preset = Preset.parse(record, "joined")
    manifest = Manifest.read(toy)
    rows = (row.model_copy(update={"sex": "F", "age": 45.0} if row.study > "train10" else {}) for row in manifest.rows)
    known = Manifest(tuple(rows), manifest.root)
    train, val = (Corpus.load(known, split, preset, tmp_path, progress=False) for split in ("train", "val"))
    stage = stage_of(preset, (train, val), 1.0)
    studies = [i for i in stage.usable for _ in range(12)]
    batch = stage._collate(train, studies, fixed_rngs(0, count=len(studies)))
    count = len(stage.labels)
    over = [1.0, 1.0, 0.0, 0.0, 0.0]  # 45 years: over 20, 30 and 40; what comes first is the sex
    of_patient = torch.tensor([1.0, 1.0, *over], dtype=torch.float32)
    seen = set()
    for ids, own, position in zip(batch["ids"], batch["text_labels"], batch["owner"]["report"], strict=True):
        text = stage.module.text.tokenizer.decode(ids)  # type: ignore[union-attr, operator]
        said = ("sex:" in text, "age:" in text)
        expected = of_patient.clone()
        expected[0] = 1.0 if said[0] else float("nan")
        if not said[1]:
            expected[1:] = float("nan")
        torch.testing.assert_close(own[count : count + 7], expected, equal_nan=True)
        assert own[count + 7 :].isnan().all()  # no score is known
        imaged = batch["labels"][position]
        assert not any(said) or bool(imaged[count] == 1)
        seen.add(said)
    assert seen == {(True, True), (True, False), (False, True), (False, False)}
    assert stage_of(debug_preset, corpora, 1.0).written is False


def test_studies_that_read_the_same_are_no_negatives_in_pairs_with_a_text(
    debug_preset: Any, corpora: tuple[Corpus, Corpus]
) -> None:
    stage: Any = stage_of(debug_preset, corpora, 0.0)
    whole = stage._usable(corpora[0], 3).tolist()
    batch = stage._collate(corpora[0], whole)
    keys = batch["key"].tolist()
    labels = ["|".join(sorted(corpora[0].studies[i].labels)) for i in whole]
    assert all((keys[i] == keys[j]) == (a == b) for i, a in enumerate(labels) for j, b in enumerate(labels))
    assert 1 < len(set(keys)) < len(keys)
    module = stage.module.eval()
    with torch.no_grad():
        image, text, _, scale, *_ = module(batch["images"], batch["ids"])
        loss, logged = stage.loss(module, batch)
    frontal, lateral = image.pooled.split([len(batch["owner"][view]) for view in ("frontal", "lateral")])

    def direction(a: torch.Tensor, b: torch.Tensor, *, spare: bool) -> float:
        """Mean over the rows of a of -log of the share of their own row among those of b that count."""
        total = 0.0
        for i, own in enumerate(keys):
            counted = [j for j, key in enumerate(keys) if j == i or not (spare and key == own)]
            logits = scale * (b[counted] @ a[i])
            total += float(torch.logsumexp(logits, 0) - scale * (a[i] @ b[i])) / len(keys)
        return total

    pairs = {
        "frontal-lateral": (frontal, lateral, False),
        "frontal-report": (frontal, text.pooled, True),
        "lateral-report": (lateral, text.pooled, True),
    }
    for name, (a, b, spare) in pairs.items():
        expected = (direction(a, b, spare=spare) + direction(b, a, spare=spare)) / 2
        assert float(logged[name]) == pytest.approx(expected, rel=1e-4)
        if spare:
            assert expected < (direction(a, b, spare=False) + direction(b, a, spare=False)) / 2 - 1e-3
    assert torch.isfinite(loss)


def test_studies_without_labels_are_compared_by_their_impression(
    debug_preset: Any, corpora: tuple[Corpus, Corpus]
) -> None:
    stage: Any = stage_of(debug_preset, corpora, 0.0)
    studies = tuple(
        dataclasses.replace(study, labels=(), impression=f"Number {index % 2}.")
        for index, study in enumerate(corpora[0].studies)
    )
    keys = stage._collate(dataclasses.replace(corpora[0], studies=studies), [0, 1, 2])["key"].tolist()
    assert keys[0] == keys[2] != keys[1]


def stage_with(preset: Preset, corpora: tuple[Corpus, Corpus], count: float) -> Any:
    config = preset.train["clip"].model_copy(update={"loss": {"hard_negatives": count}, "batch_size": 8})
    preset = preset.model_copy(update={"train": {"clip": config}})
    torch.manual_seed(0)
    return ClipStage(StageContext(preset, *corpora, Path("root"), seed=0))


def test_hard_negatives_are_off_unless_asked_for(debug_preset: Any, corpora: tuple[Corpus, Corpus]) -> None:
    plain, off = stage_of(debug_preset, corpora, 0.0), stage_with(debug_preset, corpora, 0.0)
    batches = [batch_of(stage, 3) for stage in (plain, off)]
    assert torch.equal(batches[0]["ids"], batches[1]["ids"])
    assert batches[1]["negatives"].numel() == 0
    assert len(batches[1]["ids"]) == len(batches[1]["owner"]["report"])
    for wrong in (0.5, -1.0):
        with pytest.raises(ConfigError, match=r"hard_negatives is .*; expected a number of texts, 0 or more"):
            stage_with(debug_preset, corpora, wrong)


def test_hard_negatives_are_of_their_own_study(debug_preset: Any, corpora: tuple[Corpus, Corpus]) -> None:
    stage = stage_with(debug_preset, corpora, 2.0)
    batch = stage._collate(corpora[0], stage.usable, fixed_rngs(0, count=len(stage.usable)))
    m = len(batch["owner"]["report"])
    decode = stage.module.text.tokenizer.decode
    texts = [decode(ids, skip_special_tokens=True) for ids in batch["ids"]]
    true, false = texts[:m], texts[m:]
    assert len(false) == len(batch["negatives"]) >= m
    of_study = dict(zip(batch["owner"]["report"].tolist(), true, strict=True))
    for place, text in zip(batch["negatives"].tolist(), false, strict=True):
        assert text != of_study[place // 2]
        assert set(text.split()) & set(of_study[place // 2].split())
    assert len(set(batch["negatives"].tolist())) == len(false)
    again = [stage._collate(corpora[1], list(range(7)))["ids"] for _ in range(2)]
    assert torch.equal(*again)  # validation draws the same ones every time


def test_the_loss_has_them_beside_the_other_studies_texts(debug_preset: Any, corpora: tuple[Corpus, Corpus]) -> None:
    stage = stage_with(debug_preset, corpora, 2.0)
    batch = stage._collate(corpora[0], stage.usable, fixed_rngs(0, count=len(stage.usable)))
    module: Any = stage.module.eval()
    with torch.no_grad():
        image, text, _, scale, *_ = module(batch["images"], batch["ids"])
        loss, logged = stage.loss(module, batch)
    owner, m = batch["owner"], len(batch["owner"]["report"])
    vectors = dict(zip(owner["report"].tolist(), text.pooled[:m], strict=True))
    false: dict[int, list[torch.Tensor]] = {}
    for place, vector in zip(batch["negatives"].tolist(), text.pooled[m:], strict=True):
        false.setdefault(place // 2, []).append(vector)
    frontals = dict(zip(owner["frontal"].tolist(), image.pooled[: len(owner["frontal"])], strict=True))
    both, key = sorted(frontals.keys() & vectors.keys()), batch["key"].tolist()
    to_text = to_image = 0.0
    for i in both:
        others = [j for j in both if j == i or key[j] != key[i]]
        logits = [scale * vectors[j] @ frontals[i] for j in others]
        logits += [scale * one @ frontals[i] for one in false.get(i, [])]
        own = scale * vectors[i] @ frontals[i]
        to_text += float(torch.stack(logits).logsumexp(0) - own) / len(both)
        back = torch.stack([scale * vectors[i] @ frontals[j] for j in others])
        to_image += float(back.logsumexp(0) - own) / len(both)
    assert float(logged["frontal-report"]) == pytest.approx((to_text + to_image) / 2, rel=1e-4)
    assert torch.isfinite(loss)
    plain = stage_with(debug_preset, corpora, 0.0)
    plain.module.load_state_dict(stage.module.state_dict())
    batch |= {"ids": batch["ids"][:m]}
    with torch.no_grad():
        without = plain.loss(plain.module.eval(), batch)[1]
    assert float(without["frontal-report"]) < float(logged["frontal-report"])
    torch.testing.assert_close(without["frontal-lateral"], logged["frontal-lateral"])


def test_the_loss_falls_when_the_true_text_is_nearer_than_the_false_one() -> None:
    image = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    own, scale = image.clone(), torch.tensor(10.0)

    def loss(angle: float, **kwargs: Any) -> float:
        false = torch.tensor([[math.cos(angle), math.sin(angle)], [math.sin(angle), math.cos(angle)]])[:, None]
        return float(info_nce(image, own, scale, negatives=false, **kwargs))

    falling = [loss(angle) for angle in (0.0, 0.3, 0.6, 0.9)]
    assert falling == sorted(falling, reverse=True)
    assert falling[0] == pytest.approx(0.5 * math.log(2), abs=0.02)  # as near as the true one: a coin, in one direction
    none = loss(0.0, counted=torch.zeros(2, 1, dtype=torch.bool))
    assert none == pytest.approx(float(info_nce(image, own, scale)))
    assert loss(0.0, counted=torch.tensor([[True], [False]])) == pytest.approx((falling[0] + none) / 2)


def test_training_moves_images_away_from_the_false_texts(debug_preset: Any, corpora: tuple[Corpus, Corpus]) -> None:
    stage = stage_with(debug_preset, corpora, 2.0)
    batch = stage._collate(corpora[0], stage.usable, fixed_rngs(0, count=len(stage.usable)))
    optimizer = torch.optim.Adam(stage.module.parameters(), lr=3e-3)
    before = float(stage.loss(stage.module, batch)[1]["frontal-report"])
    for _ in range(25):
        loss = stage.loss(stage.module, batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert float(stage.loss(stage.module, batch)[1]["frontal-report"]) < 0.7 * before


PAPER = {"patches": 0.0, "mask_equal": 0.0, "vary": 0.0, "jitter": 0.0}


def switched(preset: Preset, corpora: tuple[Corpus, Corpus], loss: dict[str, float], **fields: Any) -> Any:
    config = preset.train["clip"].model_copy(update={"loss": loss, "batch_size": 16})
    torch.manual_seed(0)
    changed = preset.model_copy(update={"train": {"clip": config}})
    train, val = (dataclasses.replace(corpus, **fields) for corpus in corpora)
    return ClipStage(StageContext(changed, train, val, Path("root"), seed=0))


def test_with_the_papers_switches_the_loss_is_its_first_equation(
    debug_preset: Any, corpora: tuple[Corpus, Corpus]
) -> None:
    stage = switched(debug_preset, corpora, PAPER)
    whole = stage._usable(corpora[0], 3).tolist()
    batch, module = stage._collate(corpora[0], whole), stage.module.eval()
    assert len(set(batch["key"].tolist())) < len(whole)  # some would be masked
    with torch.no_grad():
        image, text, _, scale, *_ = module(batch["images"], batch["ids"])
        loss, logged = stage.loss(module, batch)
    frontal, lateral = image.pooled.split([len(batch["owner"][view]) for view in ("frontal", "lateral")])
    clip_loss = ClipLoss()  # open_clip's
    expected = [clip_loss(a, b, scale) for a, b in ((frontal, lateral), (frontal, text.pooled), (lateral, text.pooled))]
    torch.testing.assert_close(loss, torch.stack(expected).mean())
    assert float(logged["patches"]) > 0  # shown, and not in the loss
    masked = switched(debug_preset, corpora, PAPER | {"mask_equal": 1.0}).loss(module, batch)[1]
    assert float(masked["frontal-report"]) < float(logged["frontal-report"])


def test_texts_are_trained_on_as_written_unless_they_are_varied(
    debug_preset: Any, corpora: tuple[Corpus, Corpus]
) -> None:
    how = {"prompt_sections": ("impression",), "captions": "none"}
    for vary in (0.0, 1.0):
        stage = switched(debug_preset, corpora, PAPER | {"vary": vary}, **how)

        def read(ids: torch.Tensor, stage: Any = stage) -> set[str]:
            return {stage.module.text.tokenizer.decode(row, skip_special_tokens=True) for row in ids}

        known = read(stage.tokenize([study.impression for study in corpora[0].studies if study.impression]))
        drawn = set[str]().union(*(read(batch_of(stage, step)["ids"]) for step in range(3)))
        assert drawn & known
        assert (drawn <= known) == (not vary)


def test_images_are_trained_on_as_they_are_unless_they_are_jittered(
    debug_preset: Any, corpora: tuple[Corpus, Corpus]
) -> None:
    every = corpora[0].images.floats(range(len(corpora[0].images.values)))
    for jitter in (0.0, 1.0):
        shown = batch_of(switched(debug_preset, corpora, PAPER | {"jitter": jitter}), 0)["images"]
        same = [any(torch.equal(image, one) for one in every) for image in shown]
        assert all(same) if not jitter else not any(same)


def test_a_switch_is_on_or_off(debug_preset: Any, corpora: tuple[Corpus, Corpus]) -> None:
    for switch in ("mask_equal", "vary", "jitter"):
        with pytest.raises(ConfigError, match=f"stage clip: {switch} is 0.5; expected 1, on, or 0, off"):
            switched(debug_preset, corpora, {switch: 0.5})
