"""Readers who answer by a rule, straight into the database."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from xgem.readers.study import Study
from xgem.readers.tables import AnswerRow, ItemRow, ReaderRow, ShowingRow, now

Rule = Callable[[str, str, float, np.random.Generator], tuple[int, str | None]]
"""Of a reader, an arm and an item's own quality (standard normal): score and guess."""


def answer_all(study: Study, rule: Rule, *, seed: int = 0, share: float = 1.0) -> None:
    """Answers of all readers to the first ``share`` of their items, each 10 seconds after it was shown."""
    quality = np.random.default_rng(seed)
    qualities: dict[int, float] = {}
    with Session(study.engine) as session, session.begin():
        rows = session.execute(
            select(ShowingRow, ItemRow.id, ItemRow.arm, ReaderRow.name, ShowingRow.place)
            .join(ItemRow, ItemRow.id == ShowingRow.item_id)
            .join(ReaderRow, ReaderRow.id == ShowingRow.reader_id)
            .where(ItemRow.study_id == study.id)
            .order_by(ReaderRow.id, ItemRow.task, ItemRow.arm, ItemRow.case)  # rows are in a random order
        ).all()
        last = max(place for *_, place in rows) + 1
        rng = np.random.default_rng([seed, 1])
        for showing, item, arm, reader, place in rows:
            qualities.setdefault(item, float(quality.normal()))
            score, guess = rule(reader, arm, qualities[item], rng)
            if place >= share * last:
                continue
            shown = now()
            showing.shown_at, showing.times_shown = shown, 1
            time = shown + timedelta(seconds=10)
            session.add(AnswerRow(showing_id=showing.id, score=score, guess=guess, first_at=time, answered_at=time))


def likert(mean: float, quality: float, rng: np.random.Generator, low: int = 1, high: int = 5) -> int:
    """A score around ``mean`` that follows the item's quality and the reader's noise."""
    return int(np.clip(round(mean + 0.8 * quality + rng.normal(0, 0.4)), low, high))


def synthetic_worse(by: float, *, turing: bool = False) -> Rule:
    """Synthetic items score lower ``by`` that many points; ben is half a point stricter. Guesses follow the truth in
    nine of ten where there is an effect, and in half elsewhere."""

    def rule(reader: str, arm: str, quality: float, rng: np.random.Generator) -> tuple[int, str | None]:
        mean = 3.0 - (0.5 if reader == "ben" else 0) - (by if arm != "real" else 0)
        right = rng.random() < (0.9 if by else 0.5)
        guess = "real" if (arm == "real") == right else "synthetic"
        return likert(mean, quality, rng), guess if turing else None

    return rule
