"""A curation from its plan to its result: each step works on what is missing, and an interrupted one goes on."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path

from xgem._version import __version__
from xgem.curation.counts import Done
from xgem.curation.deciding import decide_part
from xgem.curation.duplicates import build_index, choose, pair_part
from xgem.curation.engine import Engine
from xgem.curation.folder import Folder, in_order
from xgem.curation.listing import check_places, hashes_of, list_rows, manifests_of
from xgem.curation.plan import CurationPlan
from xgem.curation.result import write_result
from xgem.curation.seeing import see_part
from xgem.curation.writing import check_endpoints
from xgem.types import DataError
from xgem.utils.files import locked


def curate(plan: CurationPlan, out: str | Path, engine: Engine | None = None) -> Done:
    """Curate the sources of a plan into the folder ``out``; after an interruption the same call goes on.

    The result does not depend on the engine, on parts, or on interruptions.

    Raises:
        ConfigError, DataError, ManifestError: a source cannot be used, or no row is left.
        OutputError: the folder holds something else, or cannot be written.
        EndpointError: an endpoint is down; what is done stays.
    """
    engine, folder = engine or Engine(), Folder(out)
    check_endpoints(plan)
    check_places(plan)
    folder.open()
    with locked(folder.state):
        manifests = manifests_of(plan, folder)
        hashes = hashes_of(manifests)
        folder.begin({"xgem": __version__, "plan": plan.sha256(hashes)})
        list_rows(plan, folder, manifests)
        parts = folder.parts
        engine.run(partial(see_part, folder, plan.content), folder.missing("seen", parts), "looking at images")
        _check_some_are_there(folder)
        if plan.duplicates.search:
            build_index(folder)
            engine.run(partial(pair_part, folder, plan.duplicates), folder.missing("pairs", parts), "finding copies")
            choose(folder)
        engine.run(partial(decide_part, folder, plan), folder.missing("decided", parts), "deciding")
        return write_result(plan, folder, hashes)


def _check_some_are_there(folder: Folder) -> None:
    """DataError if a source has no row with a picture that can be read."""
    rows, problems, first = Counter[str](), Counter[str](), dict[str, str]()
    for seen in in_order(folder, "seen", ["source", "problem"]):
        rows[seen["source"]] += 1
        problems[seen["source"]] += bool(seen["problem"])
        if seen["problem"]:
            first.setdefault(seen["source"], seen["problem"])
    for source, count in rows.items():
        if problems[source] == count:
            raise DataError(f"source {source}: none of its {count} rows can be used, the first: {first[source]}")
