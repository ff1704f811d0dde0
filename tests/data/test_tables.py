"""Tables as they come: read whole, or refused with the line and the cause."""

from __future__ import annotations

import csv
import io
import logging
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from xgem.data.tables import is_missing, number_of, read_table, sex_of, split_of_name, years_of
from xgem.types import DataError

ROWS = [{"id": "1", "report": "Clear, as before."}, {"id": "2", "report": "Two\nlines; and a bar |"}]


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def as_text(separator: str, line: str = "\n") -> str:
    stream = io.StringIO()
    table = csv.DictWriter(stream, ["id", "report"], delimiter=separator, lineterminator=line)
    table.writeheader()
    table.writerows(ROWS)
    return stream.getvalue()


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("line", ["\n", "\r\n"])
def test_separator_and_encoding_are_found_out(tmp_path: Path, separator: str, encoding: str, line: str) -> None:
    read = read_table(write(tmp_path / "t.csv", as_text(separator, line).encode(encoding)), "id", "report")
    assert [dict(row) for row in read.rows] == ROWS
    assert read.lines == (2, 3)
    assert read.how.startswith("UTF-16" if encoding == "utf-16" else "UTF-8")


def test_other_kinds(tmp_path: Path) -> None:
    import openpyxl

    pq.write_table(pa.table({"id": [1.0, 2.0], "report": [row["report"] for row in ROWS]}), tmp_path / "t.parquet")
    book = openpyxl.Workbook()
    sheet = book.active
    assert sheet is not None
    for row in (["id", "report"], [1, ROWS[0]["report"]], [2, ROWS[1]["report"]], [None, None]):
        sheet.append(row)
    book.save(tmp_path / "t.xlsx")
    for name in ("t.parquet", "t.xlsx"):
        assert [dict(row) for row in read_table(tmp_path / name, "id").rows] == ROWS
    for name in ("bad.parquet", "bad.xlsx"):
        with pytest.raises(DataError, match="not a readable"):
            read_table(write(tmp_path / name, b"no table"))


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_what_csv_writes_is_read_back(tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]) -> None:
    rows = [tuple("".join(c for c in cell if c.isprintable()) for cell in row) for row in rows]  # type: ignore[misc]
    stream = io.StringIO()
    csv.writer(stream).writerows([("a", "b"), *rows])
    path = tmp_path_factory.mktemp("t") / "t.csv"
    path.write_text(stream.getvalue(), encoding="utf-8", errors="surrogatepass")
    expected = [tuple("" if is_missing(cell) else cell.strip() for cell in row) for row in rows]
    found = [(row["a"], row["b"]) for row in read_table(path).rows]
    assert found == [row for row, raw in zip(expected, rows, strict=True) if any(map(str.strip, raw))]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2,3\n", r"line 2 has 3 cells, the header \(UTF-8, comma\) has 2; the first one too many is '3'"),
        ("a,b\n1,2\n\n1\n", "line 4 has 1 cells"),
        ('a,b\n1,"x "y z\n', "line 2: not a row"),
        ('a,b\n1,"two\nlines"\n2,"open\n3,x\n', "line 4: not a row"),
        ("a,a\n1,2\n", "column 'a' is there twice"),
        ("", "empty"),
        ("\n\n", "empty"),
        ("x,b\n1,2\n", r"column 'a' is missing.*UTF-8, comma.*has x, b"),
    ],
)
def test_broken_tables_are_refused_with_their_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(DataError, match=words) as caught:
        read_table(write(tmp_path / "t.csv", text), "a")
    assert "\n" not in str(caught.value)


def test_empty_cells_behind_the_last_column_are_fine(tmp_path: Path) -> None:
    read = read_table(write(tmp_path / "t.csv", "a,b,,\n1,2,,\n3,4,,,\n"))
    assert [dict(row) for row in read.rows] == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]


def test_other_encodings_are_read_with_a_warning_or_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "t.csv", "a,b\n1,atélectasie à gauche\n".encode("latin-1"))
    with caplog.at_level(logging.WARNING, logger="xgem"):
        assert read_table(path).rows[0]["b"] == "atélectasie à gauche"
    assert "line 2 is not UTF-8" in caplog.text
    with pytest.raises(DataError, match="not readable as ascii"):
        read_table(path, encoding="ascii")
    with pytest.raises(DataError, match="line 1 is neither UTF-8 nor Windows-1252"):
        read_table(write(tmp_path / "x.csv", b"\x81\x8d,b\n1,2\n"))


@pytest.mark.parametrize("word", ["", " ", "nan", "NaN", "NULL.", "N/A.", ".", "none", "<NA>", "-"])
def test_words_for_nothing_are_nothing(tmp_path: Path, word: str) -> None:
    assert is_missing(word)
    assert read_table(write(tmp_path / "t.csv", f"a,b\n1,{word}\n")).rows[0]["b"] == ""


def test_words_for_something_are_not() -> None:
    assert not any(map(is_missing, ("0", "No.", "Normal.", "nana", "A", "none seen")))


@pytest.mark.parametrize(
    ("text", "years"),
    [("61", 61), ("061Y", 61), ("006M", 0.5), ("414", None), ("", None), ("old", None), ("inf", None), ("nan", None)],
)
def test_ages(text: str, years: float | None) -> None:
    assert years_of(text) == years


def test_words_of_cells() -> None:
    assert [sex_of(text) for text in ("F", "female", " Male ", "m", "O", "")] == ["F", "F", "M", "M", None, None]
    assert [split_of_name(text) for text in ("Train", "valid", "TEST", "dev", "x")] == [
        "train",
        "val",
        "test",
        "val",
        None,
    ]
    assert number_of("0.5", "x") == 0.5
    for text in ("", "1,5", "inf", "nan"):
        with pytest.raises(DataError, match="box 3 is"):
            number_of(text, "box 3")


def test_packed_tables(tmp_path: Path) -> None:
    import gzip

    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(b"a;b\n1;x\n"))
    assert read_table(path, "a", "b").rows == ({"a": "1", "b": "x"},)
    for damaged in (b"a,b\n1,2\n", path.read_bytes()[:-6]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"t\.csv\.gz: cannot be read as a table"):
            read_table(path)
