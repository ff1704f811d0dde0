"""The cache of evaluations: where it is, how large, and that it can be cleared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xgem.utils.cache import cache_folder, clear, evaluation_cache, size_of


def test_the_folder_is_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XGEM_CACHE", str(tmp_path / "mine"))
    assert evaluation_cache() == tmp_path / "mine" / "eval"
    monkeypatch.delenv("XGEM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "xgem"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "xgem"


def test_it_is_shown_and_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, xgem: Any) -> None:
    monkeypatch.setenv("XGEM_CACHE", str(tmp_path))
    assert clear() == 0
    assert xgem("cache", "show").out.strip() == f"{tmp_path / 'eval'}  0.0 MB"
    for name, count in (("features/a.sqlite", 2_000_000), ("judges/b", 500_000)):
        (tmp_path / "eval" / name).parent.mkdir(parents=True)
        (tmp_path / "eval" / name).write_bytes(bytes(count))
    (tmp_path / "other").touch()
    assert size_of(evaluation_cache()) == 2_500_000
    shown = xgem("cache", "show").out
    assert "2.5 MB" in shown
    assert "judges       0.5 MB" in shown
    assert "removed 2.5 MB" in xgem("cache", "clear").out
    assert not evaluation_cache().exists()
    assert (tmp_path / "other").exists()
