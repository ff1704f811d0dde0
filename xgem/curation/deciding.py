"""What becomes of each row: kept, fixed or dropped, with the reason, and the text of its study."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final

from xgem.configs.reading import ReadOptions
from xgem.curation.checks import contradictions
from xgem.curation.content import OUTPUTS, Verdict
from xgem.curation.facts import facts_of
from xgem.curation.fixing import turned_annotations, upright
from xgem.curation.folder import Folder, read_table, write_table
from xgem.curation.listing import Listed, rows_of
from xgem.curation.plan import CurationPlan
from xgem.curation.seeing import judge_columns
from xgem.curation.writing import Text, Writers, open_endpoint, structured
from xgem.data.sections import join_sections
from xgem.data.study import ANNOTATED_VIEW

if TYPE_CHECKING:
    from xgem.data.rows import Row

_SCORES: Final = (*OUTPUTS, "oriented")


def schema() -> Any:
    """Columns of the table of decisions; ``row`` is the row of the manifest as JSON, of rows that stay."""
    import pyarrow as pa

    texts = ("source", "study", "subject", "view", "file", "decision", "stage", "kind", "reason")
    found = ("duplicate_of", "orientation", "split", "how", "text_before", "text_after", "row")
    numbers = [
        ("distance", pa.float32()),
        ("correlation", pa.float32()),
        *((f"score_{n}", pa.float32()) for n in _SCORES),
    ]
    return pa.schema(
        [
            ("number", pa.int64()),
            ("line", pa.int64()),
            *((name, pa.string()) for name in (*texts, *found)),
            ("notes", pa.list_(pa.string())),
            ("problems", pa.list_(pa.string())),
            *numbers,
            ("quarters", pa.int8()),
            *judge_columns(),
            ("attempts", pa.int32()),
            ("input_tokens", pa.int64()),
            ("output_tokens", pa.int64()),
            ("cost", pa.float64()),
        ]
    )


def decide_part(folder: Folder, plan: CurationPlan, part: int) -> None:
    """Decide on every row of a part, and write it.

    Raises:
        EndpointError: an endpoint of the plan is down.
    """
    starts = folder.starts
    first, last = starts[part], starts[part + 1]
    listed, seen = rows_of(folder, part), read_table(folder.file("seen", part))
    copies = {one["number"]: one for one in _within(folder, first, last)}
    moved = folder.read(folder.state / "splits.json") if plan.duplicates.search else {}
    records = [_decided(one, saw, copies.get(one.number)) for one, saw in zip(listed, seen, strict=True)]
    verdicts = [_verdict(saw, one, record) for saw, one, record in zip(seen, listed, records, strict=True)]
    studies = [list(group) for _, group in groupby(range(len(listed)), lambda k: listed[k].row.study)]
    texts: dict[int, Text] = {}
    changed: dict[int, dict[str, Any]] = {}
    for group in studies:
        stay = [k for k in group if records[k]["decision"] != "dropped"]
        if stay:
            changed[stay[0]] = _turned_annotations(folder, [(listed[k], verdicts[k]) for k in stay])
            rows = [listed[k].row.model_copy(update=changed[stay[0]]) for k in stay]
            views = [verdicts[k].view or listed[k].row.view for k in stay]
            _describe(plan, rows, views, stay, records, texts)
    pending = [text for text in texts.values() if text.how == "structured"]
    if plan.describe.rewriter is not None and pending:
        _rewrite(folder, plan, pending)
    for group in studies:
        stay = [k for k in group if records[k]["decision"] != "dropped"]
        if not stay:
            continue
        text = texts[stay[0]]
        for k in stay:
            alone, annotations = len(group) == 1, changed[stay[0]]
            _finish(folder, listed[k].row, verdicts[k], alone, records[k], text, moved, annotations)
        # The cost of a study stands in one of its rows
        tokens = {"input_tokens": text.input_tokens, "output_tokens": text.output_tokens}
        records[stay[0]] |= {**tokens, "cost": text.cost}
    write_table(folder.file("decided", part), records, schema())


def _verdict(seen: dict[str, Any], one: Listed, record: dict[str, Any]) -> Verdict:
    """The verdict on a row; the view of an annotated image is that of its annotations, and a doubt is noted."""
    verdict = Verdict(**{name: seen[name] for name in ("drop", "kind", "turn", "invert", "view")})
    if verdict.view and one.row.view and (one.row.masks or one.row.boxes):
        record["notes"].append(f"looks like a {verdict.view} view, but is annotated as a {one.row.view} one")
        return replace(verdict, view="")
    return verdict


def _turned_annotations(folder: Folder, rows: Sequence[tuple[Listed, Verdict]]) -> dict[str, Any]:
    """What changes in all rows of a study if its annotated image, the first frontal, is turned."""
    for one, verdict in rows:
        if (verdict.view or one.row.view) == ANNOTATED_VIEW:
            if not verdict.turn or not (one.row.masks or one.row.boxes):
                return {}
            return turned_annotations(folder.root / "images", one.number, one.row, verdict.turn)
    return {}


def _within(folder: Folder, first: int, last: int) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    file = folder.state / "copies.parquet"
    if not file.exists():
        return []
    return pq.read_table(file, filters=[("number", ">=", first), ("number", "<", last)]).to_pylist()


def _decided(one: Listed, seen: dict[str, Any], copy: dict[str, Any] | None) -> dict[str, Any]:
    row = one.row
    record: dict[str, Any] = {
        "number": one.number,
        "source": one.source,
        "line": one.line,
        "study": row.study,
        "subject": row.subject,
        "view": row.view,
        "file": row.file,
        "decision": "kept",
        "split": row.split,
        "notes": list(seen["notes"]),
        "problems": [],
        "quarters": seen["quarters"],
        "text_before": join_sections(row.findings, row.impression) or None,
        **{f"score_{name}": seen[name] for name in _SCORES},
        **{name: seen[name] for name, _ in judge_columns()},
    }
    if seen["drop"]:
        stage = "source" if seen["kind"] == "source" else "content"
        record |= {"decision": "dropped", "stage": stage, "kind": seen["kind"], "reason": seen["drop"]}
    elif copy is not None:
        turned = f", {copy['orientation']}" if copy["orientation"] else ""
        record |= {
            "decision": "dropped",
            "stage": "duplicates",
            "kind": "duplicate",
            "reason": f"duplicate of {copy['study']}{turned}",
            "duplicate_of": copy["study"],
            "distance": copy["distance"],
            "correlation": copy["correlation"],
            "orientation": copy["orientation"],
        }
    return record


def _describe(
    plan: CurationPlan,
    rows: Sequence[Row],
    views: Sequence[str | None],
    stay: Sequence[int],
    records: list[dict[str, Any]],
    texts: dict[int, Text],
) -> None:
    """The text of a study by the first of its rows that stay; one that contradicts its labels is dropped, or noted."""
    facts, row = facts_of(rows, views), rows[0]
    own = join_sections(row.findings, row.impression)
    if own and (wrong := contradictions(own, facts)):
        for k in stay:
            records[k]["problems"] = wrong
            if plan.describe.contradicted == "drop":
                reason = f"the report contradicts the labels: {wrong[0]}"
                records[k] |= {"decision": "dropped", "stage": "text", "kind": "contradiction", "reason": reason}
            else:
                records[k]["notes"].append(f"the report contradicts the labels: {wrong[0]}")
        if plan.describe.contradicted == "drop":
            return
    if own and plan.describe.reports == "keep":
        texts[stay[0]] = Text(facts, row.findings, row.impression, how="report")
    elif facts.says_something:
        texts[stay[0]] = structured(facts)
    else:
        texts[stay[0]] = Text(facts, "", "", how="nothing known")


def _finish(
    folder: Folder,
    row: Row,
    verdict: Verdict,
    alone: bool,
    record: dict[str, Any],
    text: Text,
    moved: dict[str, str],
    annotations: dict[str, Any],
) -> None:
    """Complete the record of a row that has not been dropped, and make its row of the manifest; ``alone``: it is the
    only one of its study, whose ``annotations`` change."""
    record |= {"how": text.how, "problems": record["problems"] + text.problems, "attempts": text.attempts}
    if text.how == "dropped":
        reason = f"no description passed the checks: {text.problems[-1]}" if text.problems else "no description"
        record |= {"decision": "dropped", "stage": "text", "kind": "description", "reason": reason}
        return
    changes: dict[str, Any] = {"findings": text.findings, "impression": text.impression, **annotations}
    fixed: list[str] = []
    if verdict.view:
        changes |= {"view": verdict.view, "view_guessed": True}
        fixed.append(f"view {row.view or 'unknown'} -> {verdict.view}")
    if verdict.turn or verdict.invert:
        # The rows of a study are read in one way: of several, and where pixels move, a corrected copy is written
        if alone and not verdict.turn:
            reading = {**row.reading.model_dump(), "invert": not row.reading.invert}
            changes["reading"] = ReadOptions(**reading)
        else:
            changes |= upright(folder.root / "images", record["number"], row, verdict.turn, verdict.invert)
        fixed += [f"turned back by {90 * verdict.turn} degrees"] if verdict.turn else []
        fixed += ["inverted"] if verdict.invert else []
    if row.subject in moved:
        changes["split"] = moved[row.subject]
        record["notes"].append(f"split {row.split} -> {moved[row.subject]}: a picture of the patient is there too")
    if fixed:
        record |= {"decision": "fixed", "stage": "content", "reason": ", ".join(fixed)}
        record["kind"] = "rotated" if verdict.turn else "inverted" if verdict.invert else "view"
    kept = row.model_copy(update=changes)
    record |= {
        "text_after": join_sections(kept.findings, kept.impression) or None,
        "split": kept.split,
        "row": json.dumps(kept.model_dump(mode="json", exclude_defaults=True), ensure_ascii=False),
    }


def _rewrite(folder: Folder, plan: CurationPlan, texts: list[Text]) -> None:
    """Have texts rewritten by the endpoints of the plan."""
    with ExitStack() as opened:
        endpoints = [
            None if one is None else opened.enter_context(closing(open_endpoint(one, folder.answers)))
            for one in (plan.describe.rewriter, plan.describe.checker)
        ]
        Writers(plan.describe, *endpoints).rewrite(texts)
