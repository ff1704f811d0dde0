"""Hashes of files are those of their contents, and only what changed is read again."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from xgem.data import file_hashes
from xgem.data.file_hashes import FileHashes
from xgem.types import DataError
from xgem.utils.hashing import content_hash, file_digest

LONG_AGO = 10**18  # ns


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """Files that changed long ago, more than are looked up together."""
    (tmp_path / "files").mkdir()
    made = [tmp_path / "files" / f"{number}" for number in range(5)]
    for number, path in enumerate(made):
        path.write_bytes(bytes([number] * 10))
        os.utime(path, ns=(LONG_AGO, LONG_AGO))
    return [str(path) for path in made]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read."""
    names: list[str] = []

    def noted(path: str) -> bytes:
        names.append(path)
        return file_digest(path)

    monkeypatch.setattr(file_hashes, "file_digest", noted)
    monkeypatch.setattr(file_hashes, "_FILES", 2)
    return names


def test_what_did_not_change_is_read_once(files: list[str], read: list[str], tmp_path: Path) -> None:
    place = tmp_path / "cache" / "files.sqlite"
    assert FileHashes(place).content_hash(iter(files)) == content_hash(files)
    assert sorted(read) == files
    assert FileHashes(place).content_hash(reversed(files)) == content_hash(files[::-1])
    assert sorted(read) == files
    place.unlink()
    assert FileHashes(place).content_hash(files) == content_hash(files)
    assert sorted(read) == sorted(files * 2)


def test_one_of_several_reads_a_file(files: list[str], read: list[str], tmp_path: Path) -> None:
    place = tmp_path / "files.sqlite"
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: FileHashes(place).content_hash(files), range(4)))
    assert found == [content_hash(files)] * 4
    assert sorted(read) == files


def test_another_size_or_time_is_noticed(files: list[str], read: list[str], tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "files.sqlite")
    hashes.content_hash(files)
    read.clear()
    Path(files[1]).write_bytes(b"other")
    os.utime(files[1], ns=(LONG_AGO, LONG_AGO))
    Path(files[3]).write_bytes(b"ten bytes.")
    os.utime(files[3], ns=(LONG_AGO, LONG_AGO + 1))
    assert hashes.content_hash(files) == content_hash(files)
    assert sorted(read) == [files[1], files[3]]


def test_what_changed_just_now_may_change_again(files: list[str], read: list[str], tmp_path: Path) -> None:
    hashes = FileHashes(tmp_path / "files.sqlite")
    os.utime(files[2])
    for _ in range(2):
        assert hashes.content_hash(files) == content_hash(files)
    assert sorted(read) == sorted([*files, files[2]])


def test_without_a_cache_that_can_be_used_all_is_read(
    files: list[str], read: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "files.sqlite"
    place.write_bytes(b"no database" * 100)
    for _ in range(2):
        assert FileHashes(place).content_hash(files) == content_hash(files)
    assert sorted(read) == sorted(files * 2)
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert f"{place} cannot be used" in caplog.text


def test_a_missing_file_is_named(files: list[str], tmp_path: Path) -> None:
    Path(files[4]).unlink()
    with pytest.raises(DataError, match=r"files/4: cannot be read"):
        FileHashes(tmp_path / "files.sqlite").content_hash(files)
