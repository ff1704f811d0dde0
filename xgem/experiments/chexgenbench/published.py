"""The paper's own figures, to stand beside one's own (``configs/experiments/published/chexgenbench.yaml``)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from xgem.configs.yaml_text import read_yaml
from xgem.eval.compare import RankTable, rank

FILE: Final = Path(__file__).parents[2] / "configs" / "experiments" / "published" / "chexgenbench.yaml"
HIGHER: Final[Mapping[str, bool]] = {
    "fid": False,
    "kid": False,
    "alignment": True,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "reid_score": False,
    "latent_distance": True,
    "pixel_distance": True,
    "reid_score_max": False,
    "reid_count": False,
}
"""Whether more is better, of the metrics in Tables 1 and 3."""


@cache
def published() -> dict[str, dict[str, Any]]:
    """The tables by name (``table1``, ...), each by model or finding, and ``correlations``."""
    return read_yaml(FILE)


def ranked(table: str) -> RankTable:
    """The paper's models ranked by the printed numbers of Table 1 or 3."""
    rows = published()[table]
    first = next(iter(rows.values()))
    return rank(list(rows), {name: ([row[name] for row in rows.values()], HIGHER[name]) for name in first})
