"""Training whose manifest stays on the disk is that of a manifest in memory."""

from __future__ import annotations

import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.train.test_golden_losses import QUIET, SEED, read_log, tiny, write_data
from xgem.configs.preset import Preset
from xgem.data.manifest import Manifest
from xgem.data.streamed import StreamedManifest
from xgem.train import context as context_module
from xgem.train import corpus as corpus_module
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.facts import Facts
from xgem.train.stages import run


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize("ending", [".jsonl", ".parquet"])
def test_a_corpus_is_that_of_the_manifest_in_memory(
    ending: str, toy: Path, debug_preset: Preset, tmp_path: Path
) -> None:
    manifest = Manifest.read(toy)
    manifest.write(tmp_path / f"m{ending}")
    with closing(StreamedManifest(tmp_path / f"m{ending}", tmp_path / "cache")) as data:
        for split in ("train", "val"):
            expected = Corpus.load(manifest, split, debug_preset, tmp_path / "cache", progress=False)
            first, found = (
                Corpus.load(data, split, debug_preset, tmp_path / "cache", progress=False) for _ in range(2)
            )
            for made in (first, found):
                assert made.fingerprint() == expected.fingerprint()
                for name, value in vars(expected.facts).items():
                    np.testing.assert_equal(getattr(made.facts, name), value)
            assert len(found.studies) == len(expected.studies)
            for index in range(len(expected.studies)):
                assert found.texts(index) == expected.texts(index)
                assert found.report(index) == expected.report(index)
                for view in ("frontal", "lateral"):
                    rows = expected.rows(index, view)
                    assert found.rows(index, view) == rows
                    np.testing.assert_array_equal(found.images.bytes(rows), expected.images.bytes(rows))


def test_facts_are_gathered_once(
    toy: Path, debug_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[int] = []
    gather = Facts.gather

    def counted(described: Any, images: str) -> Facts:
        listed = list(described)
        read.append(len(listed))
        return gather(listed, images)

    monkeypatch.setattr(Facts, "gather", counted)
    monkeypatch.setattr(corpus_module, "_SAMPLE", 3)
    with closing(StreamedManifest(toy, tmp_path / "cache")) as data:

        def load(**changes: Any) -> Facts:
            preset = debug_preset.model_copy(update=changes)
            return Corpus.load(data, "train", preset, tmp_path / "cache", progress=False).facts

        first = load()
        assert read == [3, 21]
        assert load().fingerprint == first.fingerprint
        assert read == [3, 21, 3]
        assert load(captions="none").fingerprint != first.fingerprint
        assert read == [3, 21, 3, 3, 21]
        monkeypatch.setattr(corpus_module, "caption_from_labels", "It shows {}.".format)  # as another version may say
        assert load().fingerprint != first.fingerprint
        assert read == [3, 21, 3, 3, 21, 3, 21]


@pytest.mark.parametrize("stage", ["image-vae", "clip"])
def test_a_run_goes_on_from_the_disk(stage: str, path: Path, tmp_path: Path) -> None:
    """Begun with the manifest in memory, resumed with its file, without and with workers: the losses of one run."""
    preset, in_memory = tiny("debug", {stage: {"workers": 0}}), Manifest.read(path)
    run([stage], preset, in_memory, tmp_path / "whole", QUIET, seed=SEED)
    now = replace(QUIET, resume=True, until=time.monotonic())
    run([stage], preset, in_memory, tmp_path / "parts", now, seed=SEED)
    run([stage], preset, path, tmp_path / "parts", now, seed=SEED)
    ahead = tiny("debug", {stage: {"workers": 2}})
    run([stage], ahead, path, tmp_path / "parts", replace(QUIET, resume=True), seed=SEED)
    logs = [read_log(tmp_path / name / "training" / stage) for name in ("whole", "parts")]
    assert logs[0] == logs[1]


def test_a_tokenizer_is_trained_on_evenly_spaced_studies(
    toy: Path, debug_preset: Preset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most so many: what the texts of others say is no word of it."""
    manifest = Manifest.read(toy)
    train = Corpus.without_images(manifest, "train", debug_preset)
    rows = [row.model_copy(update={"impression": f"zq{row.study}"}) for row in manifest.rows if row.split == "train"]
    named = Corpus.without_images(Manifest(tuple(rows), toy.parent), "train", debug_preset)
    monkeypatch.setattr(context_module, "_TOKENIZED", 10)
    made = StageContext(debug_preset, named, train, tmp_path, 0).tokenizer("text_encoder")
    pieces = {index: len(made(named.studies[index].impression)["input_ids"]) for index in range(len(named.studies))}
    assert {index for index, count in pieces.items() if count == min(pieces.values())} == set(range(0, 21, 3))
