"""Cached encodings: the components' own answers, by study, and never those of other data or other weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from xgem.data.cache import ArrayCache
from xgem.data.manifest import Manifest
from xgem.train.banks import prompt_bank, target_bank
from xgem.train.corpus import Corpus
from xgem.types import DataError

CPU = torch.device("cpu")


def test_banks_hold_the_components_answers(
    corpora: tuple[Corpus, Corpus], debug_parts: dict[str, Any], tmp_path: Path
) -> None:
    train, cache = corpora[0], ArrayCache(tmp_path)
    texts = prompt_bank("report", debug_parts["text_encoder"], train, cache, CPU)
    reports = target_bank("report", debug_parts["report_vae"], train, cache, CPU)
    images = prompt_bank("lateral", debug_parts["image_encoder"], train, cache, CPU)
    for index in (0, 2, 4, 5):
        with torch.no_grad():
            if own := train.texts(index):
                expected = debug_parts["text_encoder"].encode(own)
                found = texts.encoded(texts.rows[index])
                torch.testing.assert_close(found.pooled, expected.pooled)
                n = expected.tokens.shape[1]
                assert torch.equal(found.mask[:, :n], expected.mask)
                assert not found.mask[:, n:].any()
                half = expected.tokens[expected.mask].half().float()
                torch.testing.assert_close(found.tokens[:, :n][expected.mask], half, rtol=0, atol=5e-3)
            if report := train.report(index):
                expected_z = debug_parts["report_vae"].encode([report])
                torch.testing.assert_close(reports.latents[reports.rows[index]], expected_z, rtol=1e-4, atol=1e-5)
            if rows := train.rows(index, "lateral"):
                expected = debug_parts["image_encoder"].encode(train.images.floats(rows))
                torch.testing.assert_close(images.encoded(images.rows[index]).pooled, expected.pooled)


def test_a_report_without_one_of_its_sections_is_no_target(
    corpora: tuple[Corpus, Corpus], debug_parts: dict[str, Any], tmp_path: Path
) -> None:
    studies = [replace(study, findings="" if i % 2 else "Clear.") for i, study in enumerate(corpora[0].studies)]
    train = replace(corpora[0], studies=tuple(studies), sections=("findings", "impression"))
    bank = target_bank("report", debug_parts["report_vae"], train, ArrayCache(tmp_path), CPU)
    having = [bool(study.findings and study.impression) for study in studies]
    assert 0 < sum(having) < len(having) / 2 + 1
    assert [len(rows) for rows in bank.rows] == [int(one) for one in having]


def test_texts_that_are_cut_are_counted(
    corpora: tuple[Corpus, Corpus],
    debug_parts: dict[str, Any],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train, encoder = corpora[0], debug_parts["text_encoder"]
    texts = [text for index in range(len(train.studies)) for text in train.texts(index)]
    counts = sorted(len(encoder.tokenizer(text)["input_ids"]) for text in texts)
    limit = counts[len(counts) // 2]
    longer = sum(count > limit for count in counts)
    assert longer
    prompt_bank("report", encoder, train, ArrayCache(tmp_path), CPU, limit)
    assert f"{longer} of {len(texts)} texts are too long and were truncated" in caplog.text
    caplog.clear()
    prompt_bank("report", encoder, train, ArrayCache(tmp_path / "other"), CPU, counts[-1])
    assert not caplog.text


def test_other_weights_are_encoded_anew(
    corpora: tuple[Corpus, Corpus], debug_parts: dict[str, Any], tmp_path: Path
) -> None:
    cache, encoder = ArrayCache(tmp_path), copy.deepcopy(debug_parts["image_encoder"])
    calls: list[int] = []
    original = encoder.encode
    encoder.encode = lambda batch: (calls.append(len(batch)), original(batch))[1]
    one = prompt_bank("frontal", encoder, corpora[0], cache, CPU)
    assert calls
    calls.clear()
    torch.testing.assert_close(prompt_bank("frontal", encoder, corpora[0], cache, CPU).pooled, one.pooled)
    assert not calls
    with torch.no_grad():
        next(encoder.parameters()).mul_(1.5)
    other = prompt_bank("frontal", encoder, corpora[0], cache, CPU)
    assert calls
    assert not torch.equal(other.pooled, one.pooled)


def test_a_corrected_view_is_encoded_anew(
    toy: Path, debug_preset: Any, debug_parts: dict[str, Any], tmp_path: Path
) -> None:
    """The images and texts stay the same, only which study has a frontal and which a lateral changes."""
    old = Manifest.read(toy)
    views = {("train03", "frontal"): "lateral", ("train04", "lateral"): "frontal"}
    rows = [row.model_copy(update={"view": views.get((row.study, row.view or ""), row.view)}) for row in old.rows]
    cache = ArrayCache(tmp_path / "bank")
    for manifest in (old, Manifest(tuple(rows), old.root)):
        corpus = Corpus.load(manifest, "train", debug_preset, tmp_path / "images", progress=False)
        bank = prompt_bank("frontal", debug_parts["image_encoder"], corpus, cache, CPU)
        for index in range(len(corpus.studies)):
            if own := corpus.rows(index, "frontal"):
                with torch.no_grad():
                    expected = debug_parts["image_encoder"].encode(corpus.images.floats(own))
                torch.testing.assert_close(bank.encoded(bank.rows[index]).pooled, expected.pooled)


def test_a_split_without_the_modality(
    toy: Path, debug_preset: Any, debug_parts: dict[str, Any], tmp_path: Path
) -> None:
    old = Manifest.read(toy)
    rows = [row.model_copy(update={"impression": "", "labels": ()}) for row in old.rows if row.file]
    corpus = Corpus.load(Manifest(tuple(rows), old.root), "train", debug_preset, tmp_path / "images", progress=False)
    with pytest.raises(DataError, match="this split has no report"):
        target_bank("report", debug_parts["report_vae"], corpus, ArrayCache(tmp_path / "bank"), CPU)
