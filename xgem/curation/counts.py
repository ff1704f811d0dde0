"""What is counted of a curation: for the command's output, the card and the costs."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any, Final

from xgem.curation.content import NOT_JUDGED
from xgem.data.rows import Row
from xgem.labels.vocabulary import annotated_labels

AGES: Final = (18, 40, 60, 80)
"""Ages from which the next band starts."""


@dataclass
class Done:
    """What was counted: rows by decision, by ``dropped`` and ``fixed`` kind, by reason; what is kept by each of
    ``kept``'s names; licences, words, and use of endpoints: of writers, and by ``judge...`` of the judge of content.
    """

    decisions: Counter[str] = field(default_factory=Counter[str])
    dropped: Counter[tuple[str, str]] = field(default_factory=Counter[tuple[str, str]])
    fixed: Counter[str] = field(default_factory=Counter[str])
    sources: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    kept: dict[str, Counter[str]] = field(default_factory=dict[str, Counter[str]])
    texts: Counter[str] = field(default_factory=Counter[str])
    words: Counter[int] = field(default_factory=Counter[int])
    tokens: tuple[int, int] = (0, 0)
    cost: float = 0.0
    attempts: int = 0
    judged: Counter[str] = field(default_factory=Counter[str])
    judge_cost: float = 0.0

    def add(self, record: dict[str, Any], row: Row | None) -> None:
        """Count one row's record, and its row of the manifest if it stays."""
        source = self.sources.setdefault(record["source"], Counter())
        for counted in (self.decisions, source):
            counted[record["decision"]] += 1
        if record["decision"] == "dropped":
            self.dropped[record["stage"], record["kind"]] += 1
        if record["decision"] == "fixed":
            self.fixed[record["kind"]] += 1
        self.tokens = (self.tokens[0] + (record["input_tokens"] or 0), self.tokens[1] + (record["output_tokens"] or 0))
        self.cost += record["cost"] or 0.0
        self.attempts += record["attempts"] or 0
        self.judged["images"] += record["judge_quality"] is not None
        self.judged["not judged"] += any(note.startswith(NOT_JUDGED) for note in record["notes"])
        for name in ("input", "output"):
            self.judged[f"{name} tokens"] += record[f"judge_{name}_tokens"] or 0
        self.judge_cost += record["judge_cost"] or 0.0
        if row is not None:
            self._add_kept(record, row)

    def _add_kept(self, record: dict[str, Any], row: Row) -> None:
        labels = [name for name, value in annotated_labels(row.labels, row.source).items() if value == 1]
        values = {
            "source": [record["source"]],
            "split": [row.split],
            "view": [row.view or "unknown"],
            "sex": [row.sex or "unknown"],
            "age": [band(row.age)],
            "label": labels or ["none of the 14 classes"],
            "licence": [row.licence or "not stated"],
        }
        for name, found in values.items():
            self.kept.setdefault(name, Counter()).update(found)
        self.texts[record["how"]] += 1
        self.words[len((record["text_after"] or "").split())] += 1


def band(age: float | None) -> str:
    """An age in years as a band: ``"40 to 59"``."""
    if age is None:
        return "unknown"
    edges = (0, *AGES)
    low = max(edge for edge in edges if edge <= age)
    above = [edge for edge in AGES if edge > age]
    return f"{low} to {above[0] - 1}" if above else f"{low} and more"


def as_json(done: Done) -> dict[str, Any]:
    """Counts for a command's output."""
    return {
        "rows": {"unchanged": done.decisions["kept"], **{name: done.decisions[name] for name in ("fixed", "dropped")}},
        "dropped": {f"{stage}: {kind}": count for (stage, kind), count in sorted(done.dropped.items())},
        "fixed": dict(sorted(done.fixed.items())),
        "texts": dict(sorted(done.texts.items())),
        **({"not judged": count} if (count := done.judged["not judged"]) else {}),
    }
