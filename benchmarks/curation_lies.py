"""Texts that lie about their facts, and honest ones, against the checks of `xgem data curate`.

    python benchmarks/curation_lies.py --count 300

Facts are drawn: findings with and without sides, sex, age, view. An honest text names all of them in wordings drawn at
random; a lie of each class changes one thing in it. Printed: lies that are caught, and honest texts that are refused.
"""

from __future__ import annotations

import argparse
import json
import random
import re
from collections.abc import Callable

from xgem.curation.checks import ways_wrong
from xgem.curation.facts import Facts, facts_of
from xgem.data.rows import Row
from xgem.data.wordings import wordings
from xgem.labels.qualified import QualifiedFinding

FINDINGS = (
    *("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Effusion", "Emphysema", "Fibrosis", "Hernia"),
    *("Infiltration", "Mass", "Nodule", "Pleural Thickening", "Pneumonia", "Pneumothorax"),
)
SIDED = {"Atelectasis", "Consolidation", "Effusion", "Infiltration", "Mass", "Nodule", "Pneumonia", "Pneumothorax"}
PATIENTS = (
    "{View} chest radiograph of {a} {age}-year-old {sex} patient.",
    "{View} view of the chest in {a} {age}-year-old {person}.",
    "The patient is {a} {person} aged {age}. A {view} chest radiograph was obtained.",
)
SEXES = {"F": ("female", "woman"), "M": ("male", "man")}
LINKS = ("{}", "The radiograph shows the following. {}", "{} These are the findings.")


def drawn(rng: random.Random) -> Facts:
    """Facts of a made-up study."""
    if rng.random() < 0.2:
        labels, qualified = ["No Finding"], []
    else:
        labels = rng.sample(FINDINGS, rng.choice([1, 1, 2, 3]))
        sides = [rng.choice(["", "/left", "/right"]) if label in SIDED else "" for label in labels]
        qualified = [label + side for label, side in zip(labels, sides, strict=True)]
    row = Row(study="s", subject="s", split="train", view="frontal", file="f.png", labels=tuple(labels), source="nih",
              qualified=tuple(qualified), age=rng.randint(20, 89), sex="F" if rng.random() < 0.5 else "M")  # fmt: skip
    return facts_of([row], ["frontal"])


def honest(facts: Facts, rng: random.Random, qualified: list[str]) -> str:
    """All facts in words drawn at random."""
    adjective, person = SEXES[facts.sex or "F"]
    article = "an" if str(facts.age)[0] == "8" else "a"
    first = rng.choice(PATIENTS).format(
        View="Frontal", view="frontal", a=article, age=facts.age, sex=adjective, person=person
    )
    first = first.replace("a woman", "a woman").replace("an woman", "a woman").replace("an man", "a man")
    said = [rng.choice(wordings(QualifiedFinding.parse(term))) for term in qualified] or list(facts.findings)
    return f"{first} {rng.choice(LINKS).format(' '.join(said))}"


def terms(facts: Facts) -> list[str]:
    """The findings of the facts with their sides, as of :func:`drawn`."""
    found = []
    for text, term in zip(facts.findings, facts.terms, strict=False):
        side = next((side for side in ("left", "right") if side in text.lower().split()), None)
        found.append(f"{term}/{side}" if side else term)
    return found


def added(text: str, facts: Facts, rng: random.Random) -> str | None:
    other = rng.choice([name for name in FINDINGS if name not in facts.terms])
    return f"{text} {rng.choice(wordings(QualifiedFinding.parse(other)))}"


def dropped(text: str, facts: Facts, rng: random.Random) -> str | None:
    if not facts.terms:
        return None
    left = terms(facts)
    del left[rng.randrange(len(left))]
    return honest(facts, rng, left) if left else f"{facts.patient} The lungs are described."


def negated(text: str, facts: Facts, rng: random.Random) -> str | None:
    if not facts.terms:
        return None
    chosen, names = rng.randrange(len(facts.terms)), terms(facts)
    denied = wordings(QualifiedFinding.parse(names[chosen].split("/")[0]))[0].rstrip(".").lower()
    rest = honest(facts, rng, names[:chosen] + names[chosen + 1 :]) if len(names) > 1 else facts.patient
    return f"{rest} {rng.choice(['No {}.', 'There is no evidence of {}.', 'There is no {}.']).format(denied)}"


def side(text: str, facts: Facts, rng: random.Random) -> str | None:
    if re.search(r"\b(left|right)\b", text, re.IGNORECASE):
        swap = {"left": "right", "right": "left", "Left": "Right", "Right": "Left"}
        return re.sub(r"\b(left|right)\b", lambda match: swap[match[0]], text, flags=re.IGNORECASE)
    sided = [name for name in facts.terms if name in SIDED]
    if not sided:
        return None
    names = [f"{name}/{rng.choice(['left', 'right'])}" if name == sided[0] else name for name in terms(facts)]
    return honest(facts, rng, names)


def sex(text: str, facts: Facts, rng: random.Random) -> str | None:
    swap = {"female": "male", "male": "female", "woman": "man", "man": "woman"}
    return re.sub(r"\b(female|male|woman|man)\b", lambda match: swap[match[0]], text)


def age(text: str, facts: Facts, rng: random.Random) -> str | None:
    return text.replace(str(facts.age), str((facts.age or 0) + rng.choice([-7, -1, 1, 10])))


LIES: dict[str, Callable[[str, Facts, random.Random], str | None]] = {
    "added finding": added,
    "dropped finding": dropped,
    "negated finding": negated,
    "wrong side": side,
    "wrong sex": sex,
    "wrong age": age,
}


def measured(count: int, seed: int = 0, show: int = 0) -> dict[str, dict[str, int]]:
    """By class of lies, how many of ``count`` were told and caught; and of honest texts, how many were refused."""
    rng = random.Random(seed)
    results: dict[str, dict[str, int]] = {"honest": {"n": 0, "refused": 0}}
    results |= {name: {"n": 0, "caught": 0} for name in LIES}
    while min(one["n"] for one in results.values()) < count:
        facts = drawn(rng)
        text = honest(facts, rng, terms(facts))
        wrong = ways_wrong(text, facts)
        if results["honest"]["n"] < count:
            results["honest"]["n"] += 1
            results["honest"]["refused"] += bool(wrong)
            if wrong and show:
                print("refused:", text, wrong)
        for name, lie in LIES.items():
            told = lie(text, facts, rng) if results[name]["n"] < count else None
            if told is not None and told != text:
                results[name]["n"] += 1
                caught = bool(ways_wrong(told, facts))
                results[name]["caught"] += caught
                if not caught and show:
                    print(f"missed {name}:", told, facts.findings)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--show", type=int, default=0, help="1: print what goes wrong")
    options = parser.parse_args()
    print(json.dumps(measured(options.count, options.seed, options.show), indent=2))


if __name__ == "__main__":
    main()
