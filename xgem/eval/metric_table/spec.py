"""What is known of a metric before it is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

FAMILIES: Final = (
    "agreement",
    "fidelity",
    "text",
    "factual",
    "consistency",
    "control",
    "prompts",
    "privacy",
    "utility",
    "fairness",
)
"""The families of metrics, in the order of reports."""


@dataclass(frozen=True)
class MetricSpec:
    """What is known of a metric before it is computed.

    Attributes:
        name: key in records, in snake case.
        families: where it is reported.
        higher_is_better: None where neither direction is better (a ratio whose target is 1).
        doc: one line for tables and documentation.
        range: values it can take, with the unit where there is one.
        source: paper, with section, table or equation.
        function: where it is computed, as a dotted path.
        title: for tables; the name by default.
        compat: how to get the number of a paper's published code where that differs from the paper's definition,
            which is the default.
    """

    name: str
    families: tuple[str, ...]
    higher_is_better: bool | None
    doc: str
    range: str = "[0, 1]"
    source: str = "xgem"
    function: str = ""
    title: str = ""
    compat: str = ""

    @property
    def label(self) -> str:
        """The title, or the name where there is none."""
        return self.title or self.name.replace("_", " ")
