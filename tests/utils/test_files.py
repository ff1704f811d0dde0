"""A file is replaced whole or stays as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from xgem.types import OutputError
from xgem.utils.files import replacing


def write(file: Path, text: str, error: Exception | None = None) -> None:
    """Replaces a file; fails with ``error`` when half of it is written."""
    before = file.read_text() if file.is_file() else None
    with replacing(file) as partial:
        partial.write_text(text)
        assert (file.read_text() if file.is_file() else None) == before
        if error is not None:
            raise error


def test_a_file_is_replaced_at_the_end_of_the_block(tmp_path: Path) -> None:
    file = tmp_path / "new" / "table.csv"
    for text in ("first", "second"):
        write(file, text)
        assert file.read_text() == text
    assert list(file.parent.iterdir()) == [file]


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(28, "No space left"), OutputError), (ValueError("stopped"), ValueError)]
)
def test_a_block_that_fails_changes_nothing(tmp_path: Path, error: Exception, raised: type[Exception]) -> None:
    file = tmp_path / "table.csv"
    write(file, "old")
    with pytest.raises(raised, match=r"table\.csv: cannot be written \(No space left\)|^stopped$"):
        write(file, "half", error)
    assert file.read_text() == "old"
    assert list(tmp_path.iterdir()) == [file]


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"file/table\.csv: cannot be written \(.+\); choose another path$"):
        write(tmp_path / "file" / "table.csv", "text")
