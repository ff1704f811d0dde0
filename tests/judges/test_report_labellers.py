from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest

from xgem.judges.report_labellers import RuleLabeller, read_label_table
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import DataError


def _write(path: Path, rows: list[dict[str, str]], columns: list[str] | None = None) -> Path:
    with path.open("w", newline="") as stream:
        table = csv.DictWriter(stream, columns or ["id", *CHEXPERT_CLASSES])
        table.writeheader()
        table.writerows(rows)
    return path


def test_rules_give_the_four_kinds_of_labels() -> None:
    labels = RuleLabeller().label(["Mild cardiomegaly. No pneumothorax. Possible pneumonia.", ""])
    first = dict(zip(CHEXPERT_CLASSES, labels[0], strict=True))
    assert (first["Cardiomegaly"], first["Pneumothorax"], first["Pneumonia"]) == (1, 0, -1)
    assert math.isnan(first["Fracture"])
    assert np.isnan(labels[1]).all()


def test_a_table_of_labels_is_read_by_id(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "labels.csv",
        [{"id": "b", "Edema": "1.0", "Fracture": "-1"}, {"id": "a", "Edema": "0", "Pneumonia": ""}],
    )
    table = read_label_table(path)
    labels = table.of(["a", "b", "a"])
    assert labels.shape == (3, 14)
    edema = CHEXPERT_CLASSES.index("Edema")
    assert labels[:, edema].tolist() == [0, 1, 0]
    assert labels[1, CHEXPERT_CLASSES.index("Fracture")] == -1
    assert np.isnan(labels[0, CHEXPERT_CLASSES.index("Pneumonia")])
    assert len(table.sha256) == 64
    with pytest.raises(DataError, match="'c'"):
        table.of(["a", "c"])


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([{"id": "a", "Edema": "2"}], None, "line 2: Edema is '2'"),
        ([{"id": "a", "Edema": "yes"}], None, "line 2: Edema is 'yes'"),
        ([{"id": "a"}, {"id": "a"}], None, "line 3: duplicate id 'a'"),
        ([{"id": ""}], None, "line 2: no id"),
        ([{"id": "a"}], ["id", *CHEXPERT_CLASSES[1:]], "'No Finding'"),
        ([], ["report", *CHEXPERT_CLASSES], "'id'"),
    ],
)
def test_a_broken_table_is_refused(tmp_path: Path, rows, columns, said: str) -> None:
    with pytest.raises(DataError, match=said):
        read_label_table(_write(tmp_path / "labels.csv", rows, columns))


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.csv"):
        read_label_table(tmp_path / "none.csv")
