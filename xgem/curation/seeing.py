"""What is seen in each image: its file, its fingerprint, and what the judges of content and the rules find."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from xgem.curation.content import OUTPUTS, ContentJudge, Seen, judged_pixels, rules
from xgem.curation.fingerprint import DIM, SIDE, Projection, thumbnail
from xgem.curation.folder import Folder, save_array, write_table
from xgem.curation.judging import merged, opinions
from xgem.curation.listing import Listed, rows_of
from xgem.curation.plan import ContentPlan
from xgem.data.transforms import read_with
from xgem.types import InputError
from xgem.utils.files import one_line
from xgem.utils.hashing import file_digest

if TYPE_CHECKING:
    import pyarrow as pa


def schema() -> pa.Schema:
    """Columns of the table of a part."""
    import pyarrow as pa

    scores = [(name, pa.float32()) for name in OUTPUTS]
    return pa.schema(
        [
            ("number", pa.int64()),
            ("source", pa.string()),
            ("problem", pa.string()),
            ("sha256", pa.binary(32)),
            ("height", pa.int32()),
            ("width", pa.int32()),
            ("annotations", pa.int32()),
            *scores,
            ("quarters", pa.int8()),
            ("oriented", pa.float32()),
            *judge_columns(),
            ("drop", pa.string()),
            ("kind", pa.string()),
            ("turn", pa.int8()),
            ("invert", pa.bool_()),
            ("view", pa.string()),
            ("notes", pa.list_(pa.string())),
        ]
    )


def judge_columns() -> list[tuple[str, pa.DataType]]:
    """What a vision model said, as columns of this table and of that of decisions."""
    import pyarrow as pa

    return [
        ("judge_quality", pa.int8()),
        ("judge_reason", pa.string()),
        ("judge_input_tokens", pa.int64()),
        ("judge_output_tokens", pa.int64()),
        ("judge_cost", pa.float64()),
    ]


def see_part(folder: Folder, plan: ContentPlan, part: int) -> None:
    """Look at every image of a part, and write what is seen.

    Raises:
        EndpointError: the endpoint of the plan is down.
    """
    rows = rows_of(folder, part)
    thumbnails = np.zeros((len(rows), SIDE, SIDE), np.int8)
    found: list[Seen] = []
    small: dict[int, Any] = {}

    def looked_at() -> Iterator[tuple[int, Any]]:
        """Places and pixels of the images that no rule drops, one in memory at a time."""
        for k, one in enumerate(rows):
            seen, pixels = _look(one, plan)
            found.append(seen)
            if pixels is not None:
                thumbnails[k] = thumbnail(pixels)
                if plan.network:
                    small[k] = judged_pixels(pixels)
                if not seen.verdict(plan, one.row.view).drop:
                    yield k, pixels

    if plan.endpoint is None:
        said = dict[int, Any]()
        deque(looked_at(), maxlen=0)
    else:
        said = opinions(plan.endpoint, folder.answers, looked_at())
    scored = dict(zip(small, _judge()(np.stack(list(small.values()))), strict=True)) if small else {}
    for k in scored.keys() | said.keys():
        scores, opinion = said.get(k, (None, None))
        found[k] = found[k].judged(merged(scores, scored.get(k), plan.certainty, rows[k].row.view), opinion)
    vectors = np.zeros((len(rows), DIM), np.float32)
    readable = [k for k, seen in enumerate(found) if not seen.problem]
    if readable:
        vectors[readable] = _projection()(thumbnails[readable])
    save_array(folder.file("seen", part, "thumbnails.npy"), thumbnails)
    save_array(folder.file("seen", part, "vectors.npy"), vectors)
    records = [
        {"number": one.number, "source": one.source, **seen.record(), **seen.verdict(plan, one.row.view).record()}
        for one, seen in zip(rows, found, strict=True)
    ]
    write_table(folder.file("seen", part), records, schema())


@lru_cache(1)
def _judge() -> ContentJudge:
    return ContentJudge.shipped()


@lru_cache(1)
def _projection() -> Projection:
    return Projection.load()


def _look(one: Listed, plan: ContentPlan) -> tuple[Seen, Any]:
    """What reading tells of a row's image, and its pixels (h, w) in [0, 1] if it can be read."""
    row = one.row
    annotations = len(row.boxes) + sum(map(len, row.masks.values())) + len(row.labels) + len(row.qualified)
    annotations += bool(row.findings) + bool(row.impression) + (row.severity is not None)
    if one.clash:
        return Seen(f"study of the same id in source {one.clash}", annotations=annotations), None
    if row.file is None:
        return Seen("no image", annotations=annotations), None
    needed = [row.file, *(file for files in row.masks.values() for file in files)]
    if lost := next((file for file in needed if not Path(file).is_file()), None):
        what = "missing file" if lost == row.file else f"missing file of a mask: {Path(lost).name}"
        return Seen(what, annotations=annotations), None
    file = Path(row.file)
    try:
        sha = file_digest(file)
        pixels = read_with(file, reading=row.reading).pixels
    except InputError as error:
        return Seen(f"unreadable: {one_line(error).removeprefix(f'{file}: ')}", annotations=annotations), None
    height, width = pixels.shape
    return Seen("", sha, height, width, annotations, broken=rules(pixels, plan)), pixels
