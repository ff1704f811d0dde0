"""Descriptions: structured ones, rewritten by a language model, compared with the facts by another, and checked.

The steps are those of OpenChest (ChexGen, Methods, Dataset Curation); the prompts are xgem's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel

from xgem.chat.messages import ChatAnswer, ChatFailure, ChatRequest
from xgem.curation.checks import ways_wrong
from xgem.curation.facts import Facts
from xgem.curation.plan import CurationPlan, DescribePlan
from xgem.types import ConfigError
from xgem.utils.files import one_line

if TYPE_CHECKING:
    from xgem.chat.endpoint import ChatEndpoint
    from xgem.chat.settings import ChatSettings

PROMPTS_VERSION: Final = 1
"""To be increased with every change of a prompt: the data card names it."""

_WRITER: Final = """You write descriptions of chest radiographs from structured facts, in the English of radiologists.
Write "findings": one short paragraph that begins with the view and what is known of the patient (age, sex, race), then
names every finding of the facts by its own name, as prose. Write "impression": one or two short sentences that name
the same findings again. Say nothing that the facts do not say: no side, place, extent, number, cause, certainty,
comparison, measurement or advice of your own, and no finding to be absent that the facts leave open. If the facts say
that there is no abnormality, say so. Use plain sentences without lists, headings or markup, at most {words} words in
all."""
_CHECKER: Final = """You check descriptions of chest radiographs against structured facts. Correct what differs from the
facts, remove what they do not say and what is said twice, add what is missing, and change nothing else. Answer with the
corrected "findings" and "impression"; if nothing is wrong, with the same texts. At most {words} words in all."""


class Written(BaseModel):
    """What a model answers."""

    findings: str
    impression: str


@dataclass
class Text:
    """The description of one study as it stands. ``problems`` are those of every text that was refused, in order;
    ``how``: "structured", "rewritten", "dropped", "report" (the study's own), or "nothing known"."""

    facts: Facts
    findings: str
    impression: str
    how: str = "structured"
    attempts: int = 0
    problems: list[str] = field(default_factory=list[str])
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0

    @property
    def whole(self) -> str:
        """Findings and impression."""
        return " ".join(filter(None, (self.findings, self.impression)))


def structured(facts: Facts) -> Text:
    """The description that follows from the facts alone."""
    return Text(facts, f"{facts.patient} {facts.summary}".strip(), facts.summary)


def check_endpoints(plan: CurationPlan) -> None:
    """Say what endpoints lack before any work is done.

    Raises:
        ConfigError: a key is not set, or the folder of the tokenizer holds none.
    """
    describe = plan.describe
    for settings in (plan.content.endpoint, describe.rewriter, describe.checker):
        if settings is not None:
            open_endpoint(settings, None)
    if describe.rewriter is not None and describe.tokenizer is not None:
        _tokenizer(describe.tokenizer)


def open_endpoint(settings: ChatSettings, cache: Path | None) -> ChatEndpoint:
    """The endpoint of these settings."""
    from xgem.chat.endpoint import ChatEndpoint

    return ChatEndpoint(settings, cache=cache)


class Writers:
    """The endpoints of a plan, and how often each text is tried."""

    def __init__(self, plan: DescribePlan, rewriter: ChatEndpoint | None, checker: ChatEndpoint | None) -> None:
        self.plan, self.rewriter, self.checker = plan, rewriter, checker

    def rewrite(self, texts: Sequence[Text]) -> None:
        """Replace structured descriptions by rewritten ones, as far as these pass the checks.

        Raises:
            EndpointError: an endpoint is down. What was answered is kept by its cache.
        """
        if self.rewriter is None or self.plan.rewriter is None:
            return
        drafts = {k: Written(findings="", impression="") for k in range(len(texts))}
        refused: dict[int, list[str]] = {}
        open_ = list(range(len(texts)))
        for _ in range(self.plan.attempts):
            if not open_:
                break
            asked = [self._request(texts[k], drafts[k], refused.get(k, [])) for k in open_]
            answered = self._ask(self.rewriter, self.plan.rewriter, asked, texts, open_, drafts)
            if self.checker is not None and self.plan.checker is not None:
                second = [self._second(texts[k], drafts[k]) for k in answered]
                answered = self._ask(self.checker, self.plan.checker, second, texts, answered, drafts)
            again: list[int] = []
            for k in answered:
                texts[k].attempts += 1
                wrong = self.wrong(drafts[k], texts[k].facts)
                if wrong:
                    texts[k].problems += wrong
                    refused[k] = wrong
                    again.append(k)
                else:
                    texts[k].findings, texts[k].impression = _clean(drafts[k].findings), _clean(drafts[k].impression)
                    texts[k].how = "rewritten"
            open_ = again
        if self.plan.failing == "drop":
            for text in texts:
                text.how = "rewritten" if text.how == "rewritten" else "dropped"

    def wrong(self, draft: Written, facts: Facts) -> list[str]:
        """What is wrong with a written text: its content, then its length."""
        whole = f"{draft.findings} {draft.impression}".strip()
        if not draft.findings.strip() or not draft.impression.strip():
            return ["a section is empty"]
        found = ways_wrong(whole, facts)
        words = len(whole.split())
        if words > self.plan.max_words:
            found.append(f"has {words} words, more than {self.plan.max_words}")
        if self.plan.tokenizer is not None:
            tokens = len(_tokenizer(self.plan.tokenizer)(whole)["input_ids"])
            if tokens > self.plan.max_tokens:
                found.append(f"has {tokens} tokens, more than {self.plan.max_tokens}")
        return found

    def _ask(
        self,
        endpoint: ChatEndpoint,
        settings: ChatSettings,
        requests: Iterable[ChatRequest],
        texts: Sequence[Text],
        places: Sequence[int],
        drafts: dict[int, Written],
    ) -> list[int]:
        """Ask for the texts at ``places``, whose drafts are replaced; those that were answered."""
        answered: list[int] = []
        for k, answer in zip(places, endpoint.ask_many(requests), strict=True):
            if isinstance(answer, ChatFailure):
                texts[k].problems.append(f"{settings.model}: {answer.reason}")
                continue
            self._count(texts[k], answer, settings)
            assert isinstance(answer.value, Written)
            drafts[k] = answer.value
            answered.append(k)
        return answered

    @staticmethod
    def _count(text: Text, answer: ChatAnswer, settings: ChatSettings) -> None:
        # Of cached answers too: they were paid for, and the table is the same after an interruption.
        text.input_tokens += answer.input_tokens
        text.output_tokens += answer.output_tokens
        text.cost += settings.cost(answer.input_tokens, answer.output_tokens)

    def _request(self, text: Text, draft: Written, wrong: Sequence[str]) -> ChatRequest:
        asked = f"Facts:\n{_json(text.facts.record())}"
        if wrong:
            # Equal questions would have equal answers, from the cache: the number of the attempt makes them differ
            last = _json(draft.model_dump())
            asked += f"\n\nAttempt {text.attempts + 1}. The last answer was refused:\n{last}\n\n"
            asked += f"Because it {'; it '.join(wrong)}."
        return ChatRequest(asked, _WRITER.format(words=self.plan.max_words), schema=Written)

    def _second(self, text: Text, draft: Written) -> ChatRequest:
        asked = f"Facts:\n{_json(text.facts.record())}\n\nDescription:\n{_json(draft.model_dump())}"
        return ChatRequest(asked, _CHECKER.format(words=self.plan.max_words), schema=Written)


def _json(values: dict[str, Any]) -> str:
    return json.dumps(values, ensure_ascii=False, indent=1)


def _clean(text: str) -> str:
    return " ".join(text.split())


@lru_cache(2)
def _tokenizer(folder: str) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"describe.tokenizer: {folder} holds no tokenizer ({one_line(error)}); give a folder"
        ) from None
