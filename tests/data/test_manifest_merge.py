"""Manifests merged, and studies split by hashes of their subjects."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.data.test_manifest import manifest, row
from xgem.data.manifest import Row, merge, split_of
from xgem.types import ManifestError


def test_merging_keeps_every_row_and_finds_its_files(tmp_path: Path):
    here = manifest(row("a", masks={"device": ("m.png",)}), row("b", severity=3), root=tmp_path)
    there = manifest(row("c", masks={"device": ("m.png",)}), row("d", view=None, file=None), root=tmp_path / "x")
    merged = merge([here, there], tmp_path)
    assert merged.rows[:2] == here.rows
    assert merged.rows[2].file == str(tmp_path / "x/c.png")
    assert merged.rows[2].masks == {"device": (str(tmp_path / "x/m.png"),)}
    assert merged.rows[3] == there.rows[1]
    assert merged.studies() == sorted(here.studies() + there.studies(), key=lambda study: study.id)
    elsewhere = merge([here, there], tmp_path / "y")
    assert elsewhere.root == tmp_path / "y"
    assert elsewhere.studies() == merged.studies()


@pytest.mark.parametrize(
    ("second", "words"),
    [
        (row("a", file="2.png"), "study 'a' is in manifests 1 and 3"),
        (row("c", file="../x/a.png"), "/x/a.png is in manifests 1 and 3"),
        (
            row("c", subject="p-a", split="val"),
            "subject 'p-a' is in split 'train' of manifest 1 and in 'val' of manifest 3",
        ),
    ],
)
def test_what_is_in_two_manifests_is_named(tmp_path: Path, second: Row, words: str):
    with pytest.raises(ManifestError) as caught:
        merge(
            [
                manifest(row("a"), root=tmp_path / "x"),
                manifest(row("b"), root=tmp_path),
                manifest(second, root=tmp_path / "y"),
            ],
            tmp_path,
        )
    assert words in str(caught.value)


def test_hashed_splits_are_stable_and_of_the_stated_size():
    counts = Counter(split_of(f"subject {i}") for i in range(4000))
    assert counts["val"] == pytest.approx(400, abs=70)
    assert counts["test"] == pytest.approx(400, abs=70)
    assert [split_of(f"openi-{i}") for i in range(6)] == [split_of(f"openi-{i}") for i in range(6)]
    assert {split_of(f"{i}", test=0) for i in range(300)} == {"train", "val"}


def test_a_study_of_several_manifests_may_be_taken_from_the_first(tmp_path: Path):
    first = manifest(row("a"), row("b"), root=tmp_path)
    second = manifest(row("b", file="other.png"), row("c"), root=tmp_path)
    with pytest.raises(ManifestError, match="study 'b' is in manifests 1 and 2"):
        merge([first, second], tmp_path)
    merged = merge([first, second], tmp_path, keep_first=True)
    assert merged.rows == (*first.rows, second.rows[1])
