"""The views of a chest radiograph, each with the values of DICOM's ViewPosition (0018,5101) that mean it.

A view is an image modality: a new one is one line here (or one call of :func:`add_view`), and is then a view of
manifests, a modality of presets, a training stage, and an output of cohorts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

VIEWS: dict[str, tuple[str, ...]] = {
    "frontal": ("PA", "AP"),
    "lateral": ("LL", "RL", "LAT", "LATERAL"),
}
"""Values of ViewPosition by view; :func:`add_view` adds one."""

_WORDS = {
    "frontal": ("antero-posterior", "postero-anterior", "frontal", "anteroposterior", "posteroanterior"),
    "lateral": ("lateral", "left lateral", "right lateral"),
}
"""Meanings of DICOM's ViewCodeSequence (PS3.16, CID 4010) that mean a view."""


def add_view(name: str, positions: Sequence[str] = ()) -> None:
    """Make a view known.

    Args:
        name: in lower case, such as ``oblique``; becomes part of file names.
        positions: values of ViewPosition that mean it, such as ``("LAO", "RAO")``. A DICOM file that states another
            view's is refused.

    Raises:
        ValueError: the name is none, or a position means another view.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"view {name!r}: expected a name of lower-case letters, digits and underscores")
    taken = next((one for one in positions if view_of(one) not in (None, name)), None)
    if taken is not None:
        raise ValueError(f"view {name!r}: ViewPosition {taken} means a {view_of(taken)} view")
    VIEWS[name] = tuple(positions)


def view_of(position: str) -> str | None:
    """The view that a value of ViewPosition means; None where it means none of the known ones."""
    return next((view for view, positions in VIEWS.items() if position in positions), None)


def view_of_words(meaning: str) -> str | None:
    """The view that the code meaning of a ViewCodeSequence states ("postero-anterior"); None for another."""
    words = " ".join(meaning.lower().split())
    return next((view for view, known in _WORDS.items() if words in known), None)
