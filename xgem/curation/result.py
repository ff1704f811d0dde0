"""The result: the manifest, the table of decisions, costs, and the data card."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from xgem.curation.card import card
from xgem.curation.deciding import schema
from xgem.curation.folder import Folder, read_table
from xgem.curation.plan import CurationPlan
from xgem.curation.writing import PROMPTS_VERSION
from xgem.data.manifest_files import write_parquet
from xgem.data.rows import Row
from xgem.data.streamed import StreamedManifest
from xgem.labels.vocabulary import annotated_labels
from xgem.types import DataError
from xgem.utils.files import replacing

if TYPE_CHECKING:
    from xgem.chat.settings import ChatSettings

AGES: Final = (18, 40, 60, 80)
"""Ages from which the next band starts."""


@dataclass
class Done:
    """What was counted: rows by decision, by ``dropped`` and ``fixed`` kind, by reason; what is kept by each of
    ``kept``'s names; licences, words, and use of endpoints.
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


def write_result(plan: CurationPlan, folder: Folder, hashes: dict[str, str]) -> Done:
    """Write the final files from the parts, which are read one at a time.

    Raises:
        DataError: no row is left. OutputError: a file cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    done, columns = Done(), schema()
    columns = columns.remove(columns.get_field_index("row"))
    with replacing(folder.root / "decisions.parquet") as partial, pq.ParquetWriter(partial, columns) as file:
        for part in range(folder.parts):
            records = read_table(folder.file("decided", part))
            for record in records:
                text = record.pop("row")
                done.add(record, None if text is None else Row.model_validate_json(text))
            file.write_table(pa.Table.from_pylist(records, schema=columns))
    if not done.kept:
        (stage, kind), count = done.dropped.most_common(1)[0]
        raise DataError(
            f"no row is left, {count} were dropped in {stage}: {kind}; see {folder.root}/decisions.parquet"
        )
    with replacing(folder.root / "manifest.parquet") as partial:
        write_parquet(lambda: _kept(folder), partial)
    streamed = StreamedManifest(folder.root / "manifest.parquet", folder.state / "check")
    streamed.close()
    streamed.remove_copy()
    folder.write(folder.root / "costs.json", _costs(plan, done))
    said = {source.name: _said(folder, source.name) for source in plan.sources}
    with replacing(folder.root / "README.md") as partial:
        partial.write_text(card(plan, done, hashes, said), encoding="utf-8")
    return done


def _kept(folder: Folder) -> Iterator[list[Row]]:
    for part in range(folder.parts):
        texts = (record["row"] for record in read_table(folder.file("decided", part), ["row"]))
        if rows := [Row.model_validate_json(text) for text in texts if text is not None]:
            yield rows


def _said(folder: Folder, source: str) -> list[str]:
    file = folder.state / "sources" / f"{source}.json"
    return folder.read(file) if file.exists() else []


def _costs(plan: CurationPlan, done: Done) -> dict[str, Any]:
    def named(settings: ChatSettings | None) -> Any:
        return None if settings is None else settings.model_dump(include={"model", "price_input", "price_output"})

    return {
        "rewriter": named(plan.describe.rewriter),
        "checker": named(plan.describe.checker),
        "prompts": PROMPTS_VERSION,
        "texts written": done.attempts,
        "input tokens": done.tokens[0],
        "output tokens": done.tokens[1],
        "cost": round(done.cost, 6),
    }


def as_json(done: Done) -> dict[str, Any]:
    """Counts for a command's output."""
    return {
        "rows": dict(done.decisions),
        "dropped": {f"{stage}: {kind}": count for (stage, kind), count in sorted(done.dropped.items())},
        "fixed": dict(sorted(done.fixed.items())),
        "texts": dict(sorted(done.texts.items())),
    }
