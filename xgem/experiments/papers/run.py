"""Runs an experiment: checks, then steps that resume, then the paper's tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from xgem.experiments import MEANS_NOTHING
from xgem.experiments.papers import downstream, joining, prompting, report_models, subgroups
from xgem.experiments.papers.plans import (
    KINDS,
    Downstream,
    Settings,
    Size,
    published,
    read_experiment,
)
from xgem.experiments.papers.steps import Bench, preset_of
from xgem.experiments.papers.tables import Beside, Table, as_csv
from xgem.utils.files import replacing

TABLE: Final = "table.md"
_RUNNERS: Final[dict[str, tuple[Callable[[Bench, Any], None], Callable[[Bench, Any], list[Table]]]]] = {
    "routes": (prompting.check, prompting.run),
    "joint": (joining.check, joining.run),
    "downstream": (downstream.check, downstream.run),
    "reports": (report_models.check, report_models.run),
    "fairness": (subgroups.check, subgroups.run),
}
assert _RUNNERS.keys() == KINDS.keys()


def run_experiment(
    name: str,
    out: Path,
    *,
    plan: Path | None = None,
    size: Size = "debug",
    data: Path | None = None,
    changes: Sequence[str] = (),
    device: str | None = None,
    progress: bool = True,
) -> Path:
    """Run an experiment, or go on with it, and write the paper's tables to ``out``.

    Args:
        name: one of :data:`xgem.experiments.papers.plans.EXPERIMENTS`.
        plan: one's own plan; by default the one that ships with xgem.
        data: the manifest, in place of the plan's; ``changes``: ``KEY=VALUE`` of the settings of that ``size``.

    Returns:
        the path of the tables, ``out/table.md``; ``table.csv`` beside it holds every number with its interval.

    Raises:
        InputError, ConfigError: an unknown experiment, a plan that is not valid, no data.
        DataError: data that lack what the experiment needs; said before anything is trained.
        OutputError: ``out`` holds something else or an experiment with other settings, or cannot be written.
    """
    read = read_experiment(name, plan)
    settings = read.sized(size, changes, data=data)
    bench = Bench(read, size, settings, out, device, progress)
    bench.enter()
    bench.begin(_manifests(bench, settings))
    check, run = _RUNNERS[read.kind]
    for training in settings.training.values():
        preset_of(training)
    check(bench, settings)
    figures = published(name)
    tables = [Beside.of(table, figures) for table in run(bench, settings)]
    head = [f"# {read.title}", f"{read.source}; `xgem bench {name} --size {size}`."]
    head += [f"**{MEANS_NOTHING}**"] if size == "debug" else []
    texts = {TABLE: "\n\n".join([*head, *(table.markdown() for table in tables)]) + "\n", "table.csv": as_csv(tables)}
    for file, text in texts.items():
        with replacing(out / file) as partial:
            partial.write_text(text, encoding="utf-8")
    return out / TABLE


def _manifests(bench: Bench, settings: Settings) -> list[Path]:
    """Every manifest that the experiment reads, once.

    Raises:
        InputError: one of them does not exist, or none is given.
    """
    names: list[str | None] = []
    if isinstance(settings, Downstream):
        for task in settings.tasks.values():
            names += [task.data, *task.external.values(), *([task.prompts] if task.prompts else [])]
    else:
        names = [None]
    if settings.training:
        names.append(None)
    return list(dict.fromkeys(bench.manifest(name) for name in names))
