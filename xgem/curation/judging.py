"""A vision model at a chat endpoint as judge of content, alone or beside the network that ships with xgem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xgem.chat.messages import ChatAnswer, ChatFailure
from xgem.curation.content import Opinion, Scores, shown_pixels
from xgem.curation.writing import open_endpoint

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from xgem.chat.settings import ChatSettings

Said = tuple[Scores | None, Opinion]
"""Without scores where the answer cannot be used."""


def opinions(settings: ChatSettings, cache: Path, pictures: Iterable[tuple[int, Any]]) -> dict[int, Said]:
    """What the model says of pictures, (h, w) in [0, 1], by their place. They are taken as needed.

    Raises:
        EndpointError: the endpoint is down; what was answered is kept by the cache.
    """
    from xgem.judges.chat_roles import ContentRole

    places: list[int] = []

    def shown() -> Iterator[NDArray[np.uint8]]:
        for place, pixels in pictures:
            places.append(place)
            yield shown_pixels(pixels)

    with closing(open_endpoint(settings, cache)) as endpoint:
        answers = [_said(answer, settings) for answer in ContentRole(endpoint).look(shown())]
    return dict(zip(places, answers, strict=True))


def _said(answer: ChatAnswer | ChatFailure, settings: ChatSettings) -> Said:
    from xgem.judges.chat_roles import PictureContent

    if isinstance(answer, ChatFailure):
        return None, Opinion(problem=f"{settings.model}: {answer.reason}")
    said, tokens = answer.value, (answer.input_tokens, answer.output_tokens)
    assert isinstance(said, PictureContent)
    scores = Scores(
        chest=float(said.chest_radiograph),
        collage=float(said.collage),
        text=float(said.text),
        mirrored=float(said.mirrored),
        inverted=float(said.negative),
        lateral={"frontal": 0.0, "lateral": 1.0, "other": 0.5}[said.view],
        quarters=said.turn_clockwise // 90,
        oriented=1.0,
    )
    # Of cached answers too: they were paid for, and the table is the same after an interruption.
    return scores, Opinion("", said.quality, said.view == "other", said.reason, *tokens, settings.cost(*tokens))


def merged(said: Scores | None, network: Scores | None, certainty: float, view: str | None) -> Scores | None:
    """The scores of both judges as one: what either finds is found, and of two turns the model's counts.

    ``certainty`` is that from which the network is believed, ``view`` the stated one.
    """
    if said is None or network is None:
        return said or network
    most = {
        name: max(getattr(said, name), getattr(network, name)) for name in ("collage", "text", "mirrored", "inverted")
    }
    both = replace(said, chest=min(said.chest, network.chest), **most)
    if not said.quarters and network.quarters and network.oriented >= certainty:
        both = replace(both, quarters=network.quarters, oriented=network.oriented)
    agrees = {"frontal": 0.0, "lateral": 1.0}.get(view or "") == said.lateral
    return replace(both, lateral=network.lateral) if agrees else both
