"""The benchmark's tables over its models, from their records: CSV, and Markdown with the paper's own numbers.

Numbers follow the tables of Dutt et al. 2025: 1 fidelity, 2 FID by finding, 3 privacy, 4 classification, 5 report
generation, 8 and 9 ranks, 10 frequency of findings and FID.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from xgem._version import __version__
from xgem.eval.compare import RankTable, rank
from xgem.eval.schema import MetricEntry, Record
from xgem.experiments import MEANS_NOTHING
from xgem.experiments.chexgenbench import parts
from xgem.experiments.chexgenbench.data import Sources
from xgem.experiments.chexgenbench.page import Table, page
from xgem.experiments.chexgenbench.plan import LEADING, Part, Plan
from xgem.experiments.chexgenbench.published import HIGHER, published
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import InputError
from xgem.utils.files import replacing
from xgem.utils.tables import csv_text

Records = Mapping[str, Mapping[Part, Record]]
Keys = Mapping[str, tuple[Part, str, str | None, str]]
"""Part, metric, extractor and part of the set, by the name in a table of ranks."""
PRDC: Final = ("precision", "recall", "density", "coverage")
REPORTS: Final = ("bleu_1", "bleu_4", "rouge_l", "radgraph_partial", "micro_f1_5", "micro_f1_14")
_INCEPTION: Final = "inception-v3"
_ALIGNED: Final = "biovil-t"
_RADIOMICS: Final = "radiomics"
_SAMPLES: Final = 2000
"""Of the paper's Table 3, by its caption."""
_IN_PER_CENT: Final = ("bleu_1", "bleu_4")


class Numbers:
    """The numbers of one model's records, by part, metric, extractor and part of the set."""

    def __init__(self, records: Mapping[Part, Record]) -> None:
        self.entries: dict[tuple[Part, str, str, str], MetricEntry] = {}
        self.reasons: dict[Part, str] = {}
        for part, record in records.items():
            for family in record.families:
                if family.not_computed:
                    self.reasons[part] = family.not_computed
                for metric in family.metrics:
                    self.entries[part, metric.name, metric.extractor, metric.of] = metric

    def get(self, part: Part, name: str, extractor: str | None = None, of: str = "") -> float | None:
        """The value; with no extractor, that of the first one that has it."""
        entry = self.entry(part, name, extractor, of)
        return None if entry is None or entry.value is None else entry.value.value

    def entry(self, part: Part, name: str, extractor: str | None = None, of: str = "") -> MetricEntry | None:
        """The same with its n and extractor."""
        for (other, metric, judge, whose), entry in self.entries.items():
            if (other, metric, whose) == (part, name, of) and extractor in (None, judge) and entry.value is not None:
                return entry
        return None


def write(plan: Plan, sources: Sources, records: Records, out: Path) -> str:
    """Write ``tables/*.csv``, ``README.md`` and ``index.html`` to ``out``; returns the Markdown."""
    numbers = {name: Numbers(of_model) for name, of_model in records.items()}
    models = [model.name for model in plan.models]
    space = _leading(numbers, models)
    ranks = _ranks(numbers, models, space, overall=not plan.debug)
    found = [
        _fidelity(numbers, models, space),
        _by_finding(numbers, models, space),
        _privacy(numbers, models),
        _classification(numbers, models),
        _report_generation(numbers, models),
        *(_rank_table(stem, title, table) for stem, title, table in ranks),
        _prevalence(numbers, models, space, sources),
    ]
    tables = [table for table in found if table is not None]
    files = {f"tables/{table.stem}.csv": csv_text(table.heads, table.rows) for table in tables}
    files |= _own_columns(numbers, models)
    head, missing = _head(plan, sources, models, space), _not_computed(numbers)
    related = _correlation(ranks)
    warning = MEANS_NOTHING if plan.debug else ""
    parts_of_text = [
        f"# {plan.name}",
        *([f"**{warning}**"] if warning else []),
        head,
        *(table.markdown() for table in tables),
        related,
    ]
    if missing:
        parts_of_text += ["## Not computed", "\n".join(f"- {line}" for line in missing)]
    summary = "\n\n".join(parts_of_text) + "\n"
    shown = page(plan.name, f"{head} {related}", tables, _links(records), missing, warning)
    files |= {"README.md": summary, "index.html": shown}
    files |= {"tables/README.md": f"{warning}\n"} if warning else {}
    for name in {"tables/README.md", "tables/overall_ranks.csv"} - files.keys():
        (out / name).unlink(missing_ok=True)  # of a run of the other size
    for name, text in files.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out / name) as partial:
            partial.write_text(text, encoding="utf-8")
    return summary


def _leading(numbers: Mapping[str, Numbers], models: Sequence[str]) -> str:
    """The feature space of the tables: RAD-DINO as in the paper, else the first one that all models have."""
    spaces = dict.fromkeys(
        extractor
        for name in models
        for (part, metric, extractor, of), entry in numbers[name].entries.items()
        if (part, metric, of) == ("fidelity", "fid", "") and entry.value is not None
    )
    common = [
        space for space in spaces if all(numbers[name].get("fidelity", "fid", space) is not None for name in models)
    ]
    return LEADING if LEADING in common or not common else common[0]


def _fidelity(numbers: Mapping[str, Numbers], models: Sequence[str], space: str) -> Table | None:
    keys = [("fid", space), ("kid", space), ("alignment", _ALIGNED), *((name, space) for name in PRDC)]
    rows = [[name, *(numbers[name].get("fidelity", *key) for key in keys)] for name in models]
    rows = [[*row, numbers[row[0]].get("fidelity", "frd", _RADIOMICS)] for row in rows]
    heads = ["model", *(name for name, _ in keys), "frd"]
    paper = [[name, *(row[key] for key, _ in keys), None] for name, row in published()["table1"].items()]
    other = "Numbers of two spaces cannot be compared." if space != LEADING else ""
    return _table("table1_fidelity", f"Table 1: fidelity ({_spaces(space)})", heads, rows, paper, other)


def _spaces(space: str) -> str:
    """The feature space of a table's numbers, and that of the paper's rows where it is another."""
    return space if space == LEADING else f"in {space}; the paper's rows in {LEADING}"


def _by_finding(numbers: Mapping[str, Numbers], models: Sequence[str], space: str) -> Table | None:
    rows = [
        [name, *(numbers[name].get("fidelity", "fid", space, finding) for finding in CHEXPERT_CLASSES)]
        for name in models
    ]
    paper = [[name, *(row.get(one) for one in CHEXPERT_CLASSES)] for name, row in published()["table2"].items()]
    title = f"Table 2: FID by finding ({_spaces(space)})"
    return _table("table2_fid_by_finding", title, ["model", *CHEXPERT_CLASSES], rows, paper)


def _privacy(numbers: Mapping[str, Numbers], models: Sequence[str]) -> Table | None:
    keys = list(next(iter(published()["table3"].values())))
    paper = [[name, *row.values(), _SAMPLES] for name, row in published()["table3"].items()]
    rows: list[list[Any]] = []
    spaces: dict[str, None] = {}
    for name in models:
        counted, latent = (numbers[name].entry("privacy", key) for key in ("reid_count", "latent_distance"))
        n = None if counted is None or counted.value is None else counted.value.n
        rows.append([name, *(numbers[name].get("privacy", key) for key in keys), n])
        spaces |= {} if latent is None else {latent.extractor: None}
    note = (
        f"reid_count is among reid_count_of generated images; the paper's among {_SAMPLES} samples. Distances are to "
        "the closest training image and in float; the paper's code compares otherwise (see the guide)."
    )
    title = f"Table 3: privacy (latent distance {_spaces(', '.join(spaces))})" if spaces else "Table 3: privacy"
    return _table("table3_privacy", title, ["model", *keys, "reid_count_of"], rows, paper, note)


def _auroc(numbers: Numbers, protocol: str) -> list[float | None]:
    return [numbers.get("classification", "auroc", None, f"{protocol}, {name}") for name in CHEXPERT_CLASSES]


def _classification(numbers: Mapping[str, Numbers], models: Sequence[str]) -> Table | None:
    measures = ("auroc_macro", "f1_macro", "accuracy_macro")

    def row(shown: str, name: str, protocol: str) -> list[Any]:
        means = (numbers[name].get("classification", measure, None, protocol) for measure in measures)
        return [shown, *_auroc(numbers[name], protocol), *means]

    # Several sets of prompts may have several classifiers of real images
    real = dict.fromkeys(tuple(row("real", name, "real")) for name in models)
    known = [list(one) for one in real if any(cell is not None for cell in one[1:])]
    rows = [*known, *(row(name, name, "synthetic") for name in models)]
    paper = [
        [name, *(values.get(one) for one in CHEXPERT_CLASSES), *[None] * len(measures)]
        for name, values in published()["table4"].items()
    ]
    title = "Table 4: AUROC of a classifier trained on synthetic images alone"
    return _table("table4_classification", title, ["model", *CHEXPERT_CLASSES, *measures], rows, paper)


def _report_generation(numbers: Mapping[str, Numbers], models: Sequence[str]) -> Table | None:
    def row(name: str) -> list[Any]:
        values = {key: numbers[name].get("reports", key, _labeller(numbers[name], key)) for key in REPORTS}
        scaled = {key: None if x is None else 100 * x if key in _IN_PER_CENT else x for key, x in values.items()}
        return [name, *scaled.values()]

    rows = [row(name) for name in (parts.REAL_MODEL, *models) if name in numbers]
    paper = [[name, *values.values()] for name, values in published()["table5"].items()]
    note = "BLEU in per cent. F1 by CheXbert where its weights were given, else by xgem's own rules."
    return _table("table5_reports", "Table 5: report generation", ["model", *REPORTS], rows, paper, note)


def _labeller(numbers: Numbers, key: str) -> str | None:
    """CheXbert where it labelled."""
    found = numbers.get("reports", key, "CheXbert")
    return None if found is None else "CheXbert"


def _ranks(
    numbers: Mapping[str, Numbers], models: Sequence[str], space: str, *, overall: bool
) -> list[tuple[str, str, RankTable]]:
    """Tables 8 and 9, the same of privacy and report generation, and ``overall``."""
    alone: Keys = {
        "alignment": ("fidelity", "alignment", _ALIGNED, ""),
        "frd": ("fidelity", "frd", _RADIOMICS, ""),
    }
    in_spaces: Keys = {
        f"{name} ({extractor})": ("fidelity", name, extractor, "")
        for extractor in dict.fromkeys((_INCEPTION, space))
        for name in ("fid", "kid")
    }
    manifolds: Keys = {name: ("fidelity", name, space, "") for name in PRDC}
    fidelity: Keys = {**in_spaces, **alone, **manifolds}
    private: Keys = {name: ("privacy", name, None, "") for name in next(iter(published()["table3"].values()))}
    classes: Keys = {name: ("classification", "auroc", None, f"synthetic, {name}") for name in CHEXPERT_CLASSES}
    reports: Keys = {name: ("reports", name, None, "") for name in REPORTS}
    groups: tuple[tuple[str, str, str, Keys], ...] = (
        ("table8_fidelity_ranks", "Table 8: ranks by fidelity", "fidelity", fidelity),
        ("privacy_ranks", "Ranks by privacy", "privacy", private),
        ("table9_classification_ranks", "Table 9: ranks by AUROC of the classifier", "classification", classes),
        ("reports_ranks", "Ranks by report generation", "reports", reports),
    )
    found: list[tuple[str, str, RankTable]] = []
    means: dict[str, tuple[Sequence[float], bool]] = {}
    for stem, title, name, keys in groups:
        table = _ranked(numbers, models, keys)
        if table is not None:
            found.append((stem, title, table))
            means[name] = table.mean_rank.tolist(), False
    if overall and len(found) > 1:
        found.append(("overall_ranks", "Overall: ranks by the mean ranks above", rank(models, means)))
    return found


def _ranked(numbers: Mapping[str, Numbers], models: Sequence[str], keys: Keys) -> RankTable | None:
    """Ranks by the metrics that all models have; None where fewer than two models or no such metric."""
    values: dict[str, tuple[Sequence[float], bool]] = {}
    left_out: dict[str, str] = {}
    for name, key in keys.items():
        row = [numbers[model].get(*key) for model in models]
        lacking = [model for model, value in zip(models, row, strict=True) if value is None]
        if lacking:
            left_out[name] = f"not computed for {', '.join(lacking)}"
        else:
            values[name] = [value for value in row if value is not None], HIGHER.get(key[1], key[1] != "frd")
    try:
        return rank(models, values, left_out)
    except InputError:
        return None


def _rank_table(stem: str, title: str, table: RankTable) -> Table:
    rows = [
        [model, *ranks, float(mean), float(overall)]
        for model, ranks, mean, overall in zip(
            table.models, table.ranks.tolist(), table.mean_rank, table.overall, strict=True
        )
    ]
    left_out = "; ".join(f"{name}: {reason}" for name, reason in table.left_out.items())
    tied = [name for name, ranks in zip(table.metrics, table.ranks.T, strict=True) if len(set(ranks)) < len(ranks)]
    notes = [f"Ties, which get the mean of their ranks: {', '.join(tied)}."] if tied else []
    notes += [f"Left out: {left_out}."] if left_out else []
    return Table(stem, title, table.heads, rows, note=" ".join(notes))


def _prevalence(numbers: Mapping[str, Numbers], models: Sequence[str], space: str, sources: Sources) -> Table | None:
    """How frequent a finding is in the training studies, and its mean FID over models."""
    labels = sources.train.labels()
    counts = {name: int((labels[:, k] == 1).sum()) for k, name in enumerate(CHEXPERT_CLASSES)}
    rows: list[tuple[str, int, float]] = []
    for finding, count in counts.items():
        values = [numbers[name].get("fidelity", "fid", space, finding) for name in models]
        known = [value for value in values if value is not None]
        if count and len(known) == len(models):
            rows.append((finding, count, float(np.mean(known))))
    if len(rows) < 3:
        return None
    from scipy.stats import rankdata

    prevalence, fid = rankdata([-count for _, count, _ in rows]), rankdata([value for *_, value in rows])
    shown = [
        [finding, count, float(first), value, float(second)]
        for (finding, count, value), first, second in zip(rows, prevalence, fid, strict=True)
    ]
    heads = ["finding", "training studies", "prevalence rank", f"FID ({space})", "FID rank"]
    paper = [[name, *row] for name, row in published()["table10"].items()]
    r = float(np.corrcoef(prevalence, fid)[0, 1])
    note = (
        f"Correlation of the ranks: {r:.3f} over {len(rows)} findings "
        f"(paper: {published()['correlations']['prevalence with FID']}). FID falls with the number of images too."
    )
    title = f"Table 10: frequency of findings and FID ({_spaces(space)})"
    return Table("table10_prevalence", title, heads, shown, paper, note)


def _table(
    stem: str, title: str, heads: Sequence[str], rows: list[list[Any]], paper: list[list[Any]], note: str = ""
) -> Table | None:
    """The table without columns that neither side has; None where there is no number of one's own."""
    if all(cell is None for row in rows for cell in row[1:]):
        return None
    kept = [k for k in range(len(heads)) if any(row[k] is not None for row in (*rows, *paper))]
    sides = ([[row[k] for k in kept] for row in side] for side in (rows, paper))
    return Table(stem, title, [heads[k] for k in kept], *sides, note=note)


_OWN: Final = {
    "image_generation_metrics.csv": {
        "FID": ("fid", _INCEPTION),
        "FID (RadDino)": ("fid", LEADING),
        "KID": ("kid", _INCEPTION),
        "KID (RadDino)": ("kid", LEADING),
        **{name.capitalize(): (name, LEADING) for name in PRDC},
        "FRD": ("frd", _RADIOMICS),
    },
    "img_text_alignment.csv": {"Alignment_score": ("alignment", _ALIGNED)},
}
"""Files and columns of the published code; it rounds to 3 places."""


def _own_columns(numbers: Mapping[str, Numbers], models: Sequence[str]) -> dict[str, str]:
    """The published code's CSVs, a row per model, and conditional ones with a row per model and finding."""
    files: dict[str, str] = {}
    for name, columns in _OWN.items():

        def row(model: str, of: str, columns: Mapping[str, tuple[str, str]] = columns) -> dict[str, Any]:
            values = {head: numbers[model].get("fidelity", *key, of) for head, key in columns.items()}
            rounded = {head: None if value is None else round(value, 3) for head, value in values.items()}
            return rounded | {"Extra Info": model, "Caption Type": "annotated_prompt"}

        whole = [row(model, "") for model in models]
        files[f"tables/{name}"] = csv_text(list(whole[0]), whole)
        by_finding = [row(model, of) | {"Pathology": of} for model in models for of in CHEXPERT_CLASSES]
        known = [one for one in by_finding if any(one[head] is not None for head in columns)]
        if known:
            files[f"tables/conditional_{name}"] = csv_text(list(known[0]), known)
    return files


def _correlation(ranks: Iterable[tuple[str, str, RankTable]]) -> str:
    """Pearson's r of the models' mean ranks by fidelity and by classification (appendix C)."""
    by_stem = {stem: table for stem, _, table in ranks}
    paper = published()["correlations"]["fidelity with classification"]
    first, second = by_stem.get("table8_fidelity_ranks"), by_stem.get("table9_classification_ranks")
    if first is None or second is None or len(first.models) < 3:
        return f"Correlation of fidelity with classification: needs three models with both (paper: {paper:.2f})."
    r = float(np.corrcoef(first.mean_rank, second.mean_rank)[0, 1])
    return f"Correlation of fidelity with classification over {len(first.models)} models: {r:.2f} (paper: {paper:.2f})."


def _links(records: Records) -> list[tuple[str, str]]:
    return [
        (f"{model}, {part}", f"models/{model}/{part}/{part}.html")
        for model, of_model in records.items()
        for part in of_model
    ]


def _head(plan: Plan, sources: Sources, models: Sequence[str], space: str) -> str:
    return (
        f"CheXGenBench by xgem {__version__} on synthetic radiographs of {', '.join(models)}: {len(sources.test)} real "
        f"test and {len(sources.train)} training studies, seed {plan.seed}, "
        f"measured as the {'published code does' if plan.compat else 'paper says'}, features of {space}. Rows in "
        "italics are the paper's own numbers, on other data. n, intervals and references of every number are in "
        "models/MODEL/PART."
    )


def _not_computed(numbers: Mapping[str, Numbers]) -> list[str]:
    """By reason, what could not be computed, and for whom."""
    what: dict[str, dict[str, None]] = {}
    whom: dict[str, dict[str, None]] = {}
    for name, of_model in numbers.items():
        reasons = [(reason, part) for part, reason in of_model.reasons.items()]
        for (part, metric, extractor, of), entry in of_model.entries.items():
            if entry.value is None and not of:
                reasons.append((entry.not_computed, f"{part} {metric}" + (f" ({extractor})" if extractor else "")))
        for reason, shown in reasons:
            what.setdefault(reason, {})[shown] = None
            whom.setdefault(reason, {})[name] = None
    return [f"{reason}: {', '.join(what[reason])}; of {', '.join(whom[reason])}" for reason in what]
