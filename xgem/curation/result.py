"""The result: the manifest, the table of decisions, costs, and the data card."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from xgem.curation.card import card
from xgem.curation.counts import Done
from xgem.curation.deciding import schema
from xgem.curation.folder import Folder, read_table
from xgem.curation.listing import prepared_file
from xgem.curation.plan import CurationPlan, SourcePlan
from xgem.curation.writing import PROMPTS_VERSION
from xgem.data.manifest_files import write_parquet
from xgem.data.rows import Row
from xgem.data.streamed import StreamedManifest
from xgem.judges import chat_prompts as prompts
from xgem.types import DataError
from xgem.utils.files import replacing

if TYPE_CHECKING:
    from xgem.chat.settings import ChatSettings


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
        raise DataError(f"no row is left, {count} were dropped in {stage}: {kind}; see {folder.root}/decisions.parquet")
    with replacing(folder.root / "manifest.parquet") as partial:
        write_parquet(lambda: _kept(folder), partial)
    streamed = StreamedManifest(folder.root / "manifest.parquet", folder.state / "check")
    streamed.close()
    streamed.remove_copy()
    folder.write(folder.root / "costs.json", _costs(plan, done))
    said = {source.name: _said(folder, source) for source in plan.sources}
    with replacing(folder.root / "README.md") as partial:
        partial.write_text(card(plan, done, hashes, said), encoding="utf-8")
    return done


def _kept(folder: Folder) -> Iterator[list[Row]]:
    for part in range(folder.parts):
        texts = (record["row"] for record in read_table(folder.file("decided", part), ["row"]))
        if rows := [Row.model_validate_json(text) for text in texts if text is not None]:
            yield rows


def _said(folder: Folder, source: SourcePlan) -> list[str]:
    file = prepared_file(source, folder).with_suffix(".json")
    return folder.read(file) if file.exists() else []


def _costs(plan: CurationPlan, done: Done) -> dict[str, Any]:
    def named(settings: ChatSettings | None) -> Any:
        return None if settings is None else settings.model_dump(include={"model", "price_input", "price_output"})

    content = None
    if plan.content.endpoint is not None:
        used = {**done.judged, "cost": round(done.judge_cost, 6)}
        content = {"judge": named(plan.content.endpoint), "prompts": prompts.VERSION, **used}
    return {
        "content": content,
        "rewriter": named(plan.describe.rewriter),
        "checker": named(plan.describe.checker),
        "prompts": PROMPTS_VERSION,
        "texts written": done.attempts,
        "input tokens": done.tokens[0],
        "output tokens": done.tokens[1],
        "cost": round(done.cost, 6),
    }
