"""The data card of a curated set."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from xgem._version import __version__
from xgem.curation.content import ContentJudge
from xgem.curation.counts import Done
from xgem.curation.plan import CurationPlan
from xgem.curation.writing import PROMPTS_VERSION
from xgem.judges import chat_prompts as prompts
from xgem.utils.tables import markdown_table

_STRICT: Final = (
    ("noncommercial", "non-commercial", "by-nc", "cc-nc", "research"),
    ("nd",),
    ("sa", "share"),
    ("by", "cite"),
)
"""What a licence forbids or asks, by its words, the strictest first."""


def card(plan: CurationPlan, done: Done, hashes: dict[str, str], said: dict[str, list[str]]) -> str:
    """The card in Markdown: counts, what was dropped and why, texts and costs, licences, limits."""
    kept = done.decisions["kept"] + done.decisions["fixed"]
    total = done.decisions.total()
    parts = [
        f"# {plan.name}",
        f"{kept} of {total} images from {len(plan.sources)} source(s), by `xgem data curate` of xgem {__version__}. "
        "`manifest.parquet` names the images in place; `decisions.parquet` has every row, and why.",
        "## Licences",
        "The set as a whole follows the strictest; check the terms of each source before use.",
        _table("licence", done.kept["licence"], sorted(done.kept["licence"], key=_strictness)),
        "## What was kept and dropped",
        _sources(plan, done, hashes, said),
        markdown_table(
            ["dropped in", "because", "images"],
            [(stage, kind, count) for (stage, kind), count in sorted(done.dropped.items())] or [("-", "nothing", 0)],
        ),
    ]
    if done.fixed:
        parts += [_table("fixed", done.fixed)]
    if plan.content.endpoint is not None:
        counts = done.judged
        parts.append(
            f"Content was judged by {plan.content.endpoint.model}, prompts of version {prompts.VERSION}: "
            f"{counts['images']} images, {counts['not judged']} more without a usable answer; {counts['input tokens']} "
            f"input and {counts['output tokens']} output tokens, cost {done.judge_cost:.2f}."
        )
    parts.append("## Counts")
    for name in ("split", "view", "sex", "age", "label"):
        parts.append(_table(name, done.kept[name]))
    parts += ["## Texts", *_texts(plan, done), "## Limits", *_limits(plan)]
    return "\n\n".join(parts) + "\n"


def _table(name: str, counts: Counter[str], order: list[str] | None = None) -> str:
    return markdown_table([name, "images"], [(one, counts[one]) for one in order or sorted(counts)])


def _sources(plan: CurationPlan, done: Done, hashes: dict[str, str], said: dict[str, list[str]]) -> str:
    rows: list[Any] = []
    for source in plan.sources:
        counts = done.sources.get(source.name, Counter())
        values = (counts[name] for name in ("kept", "fixed", "dropped"))
        rows.append((source.name, *values, hashes[source.name][:12], "; ".join(said[source.name])))
    return markdown_table(["source", "unchanged", "fixed", "dropped", "SHA-256 of its rows", "its reader said"], rows)


def _strictness(licence: str) -> tuple[int, str]:
    """Place in the order of licences; one that is not stated allows nothing, and comes first."""
    text = licence.lower()
    if text == "not stated":
        return 0, text
    words = text.replace("-", " ").split()
    for place, marks in enumerate(_STRICT, start=1):
        if any(mark in text if len(mark) > 3 else mark in words for mark in marks):
            return place, text
    return len(_STRICT) + 1, text


def _texts(plan: CurationPlan, done: Done) -> list[str]:
    words = sorted(done.words.elements())
    lines = [_table("text", done.texts), f"Words a text: median {words[len(words) // 2]}, most {words[-1]}."]
    if plan.describe.rewriter is not None:
        checker = plan.describe.checker
        second = f", compared with the facts by {checker.model}" if checker else ""
        lines.append(
            f"Written by {plan.describe.rewriter.model}{second}; prompts of version {PROMPTS_VERSION}; "
            f"{done.attempts} texts, {done.tokens[0]} input and {done.tokens[1]} output tokens, cost {done.cost:.2f}. "
            "Every text was compared with the labels by xgem's own labeller."
        )
    return lines


def _limits(plan: CurationPlan) -> list[str]:
    lines = [
        "- Labels are those of the sources, counted above by the classes of CheXpert that they belong to. Descriptions "
        "say what labels and metadata say, not what a reader sees.",
        "- Splits are those of the sources' readers, but for patients of two splits who share a picture.",
        "- A picture that is in two sources is found by its pixels; another picture of the same patient is not.",
    ]
    if plan.content.network:
        accuracy = ContentJudge.shipped().accuracy
        lines.append(f"- The judge of content knows chest radiographs and {accuracy['others']}.")
    if plan.content.endpoint is not None:
        lines.append(f"- How often {plan.content.endpoint.model} is right about content was not measured.")
    elif not plan.content.network:
        lines.append("- Content was judged by rules alone: unreadable, colour, blank and small images.")
    return lines
