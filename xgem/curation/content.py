"""What a picture is: a chest radiograph or not, its view, and whether it is turned, negative, written on or empty.

Rules see what needs no learning; a small network that ships with xgem sees the rest, or a vision model at an endpoint.
What the network was trained on stands beside its weights.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from xgem.checkpoints.locate import ASSETS
from xgem.curation.plan import ContentPlan
from xgem.data.transforms import resize
from xgem.types import CheckpointError
from xgem.utils.files import one_line, read_json, replacing, write_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

SHIPPED: Final = ASSETS / "judges" / "content"
RECORD: Final = "content.json"
WEIGHTS: Final = "model.safetensors"
SIDE: Final = 128
OUTPUTS: Final = ("chest", "collage", "text", "mirrored", "inverted", "lateral")
"""Outputs with a probability each; after them come four for the quarters by which an image is turned."""
_BATCH: Final = 64
_WHITE: Final = 0.995
SHOWN: Final = 768
"""Most pixels on a side of the images that a vision model is shown."""
NOT_JUDGED: Final = "not judged by "
"""How the note on a row begins that got no usable answer."""


@dataclass(frozen=True)
class Scores:
    """Probabilities of one image. ``quarters`` by which it lies counter-clockwise, with probability ``oriented``."""

    chest: float
    collage: float
    text: float
    mirrored: float
    inverted: float
    lateral: float
    quarters: int
    oriented: float


@dataclass(frozen=True)
class Opinion:
    """What a vision model said of an image beside its scores, and what that cost. ``problem``: why it said nothing
    that can be used; ``quality`` from 1 to 5; ``other_view``: neither frontal nor lateral."""

    problem: str = ""
    quality: int | None = None
    other_view: bool = False
    reason: str = ""
    input_tokens: int = 0
    output_tokens: int = 0
    cost: float = 0.0


@dataclass(frozen=True)
class Verdict:
    """What happens to a row: ``drop`` is the reason why it is dropped, of this ``kind``; ``turn`` the quarters by which
    it is turned back, clockwise; ``invert``; ``view`` what its view becomes; ``notes`` what else was seen.
    """

    drop: str = ""
    kind: str = ""
    turn: int = 0
    invert: bool = False
    view: str = ""
    notes: tuple[str, ...] = ()

    def record(self) -> dict[str, Any]:
        """As columns of a table."""
        return {**asdict(self), "notes": list(self.notes)}

    @property
    def fixes(self) -> bool:
        """Whether anything about the row is put right."""
        return bool(self.turn or self.invert or self.view)


@dataclass(frozen=True)
class Seen:
    """What was seen of one row. ``problem``: why it has no picture that can be used; ``broken`` are the kinds of the
    rules that it breaks, with the reason."""

    problem: str
    sha256: bytes = b""
    height: int = 0
    width: int = 0
    annotations: int = 0
    broken: tuple[tuple[str, str], ...] = ()
    scores: Scores | None = None
    opinion: Opinion | None = None

    def judged(self, scores: Scores | None, opinion: Opinion | None) -> Seen:
        """The same with what the judges say."""
        return replace(self, scores=scores, opinion=opinion)

    def record(self) -> dict[str, Any]:
        """As columns of a table."""
        scores = asdict(self.scores) if self.scores else {}
        named = {name: getattr(self, name) for name in ("problem", "height", "width", "annotations")}
        said: dict[str, Any] = {}
        if self.opinion:
            names = ("quality", "reason", "input_tokens", "output_tokens", "cost")
            said = {f"judge_{name}": getattr(self.opinion, name) for name in names}
        return {**named, "sha256": self.sha256 or None, **scores, **said}

    def verdict(self, plan: ContentPlan, view: str | None) -> Verdict:
        """What the plan does with it; ``view`` is the stated one."""
        if self.problem:
            return Verdict(
                self.problem, "source" if "file" in self.problem or "source" in self.problem else "unreadable"
            )
        dropped: list[tuple[str, str]] = []
        notes: list[str] = []
        for kind, reason in self.broken:
            (dropped.append((kind, reason)) if getattr(plan, kind) == "drop" else notes.append(reason))
        if self.opinion and self.opinion.problem:
            notes.append(f"{NOT_JUDGED}{self.opinion.problem}")
        verdict = Verdict() if self.scores is None else _judged(self.scores, self.opinion, plan, view, dropped, notes)
        if dropped:
            kind, reason = dropped[0]
            return Verdict(reason, kind, notes=(*(other for _, other in dropped[1:]), *notes))
        return replace(verdict, notes=tuple(notes))


def _judged(
    scores: Scores,
    opinion: Opinion | None,
    plan: ContentPlan,
    view: str | None,
    dropped: list[tuple[str, str]],
    notes: list[str],
) -> Verdict:
    """What follows from the judges' scores and the opinion; adds to ``dropped`` and ``notes``."""

    def act(policy: str, kind: str, reason: str) -> bool:
        """Whether it is to be fixed."""
        if policy == "drop":
            dropped.append((kind, reason))
        elif policy == "note":
            notes.append(reason)
        return policy == "fix"

    sure = plan.certainty
    # What is no radiograph of a chest has neither view nor orientation
    if scores.chest < sure:
        act(plan.not_chest, "not_chest", f"not a chest radiograph (one with probability {scores.chest:.2f})")
        return Verdict()
    if scores.collage >= sure:
        act(plan.collage, "collage", f"several images in one ({scores.collage:.2f})")
        return Verdict()
    turn, invert, corrected = 0, False, ""
    if scores.quarters and scores.oriented >= sure:
        reason = f"rotated by {90 * scores.quarters} degrees ({scores.oriented:.2f})"
        turn = scores.quarters if act(plan.rotated, "rotated", reason) else 0
    if scores.inverted >= sure:
        invert = act(plan.inverted, "inverted", f"a negative ({scores.inverted:.2f})")
    seen, certain = ("lateral", scores.lateral) if scores.lateral > 0.5 else ("frontal", 1 - scores.lateral)
    stated = f"stated as {view}" if view else "view not stated"
    if opinion and opinion.other_view:
        seen, reason = "other", f"shows neither a frontal nor a lateral view, {stated}"
        if act(plan.view, "view", reason):
            notes.append(reason)  # there is no view that it could be given
    elif certain >= sure and seen != view:
        policy = plan.view if view is None or certain >= plan.override else "note"
        corrected = seen if act(policy, "view", f"shows a {seen} view ({certain:.2f}), {stated}") else ""
    if scores.mirrored >= sure and seen == "frontal":
        act(plan.mirrored, "mirrored", f"mirrored, or with the heart on the right ({scores.mirrored:.2f})")
    if scores.text >= sure:
        act(plan.text, "text", f"text burned into the image ({scores.text:.2f})")
    if opinion and opinion.quality is not None and opinion.quality < plan.least_quality:
        act(plan.non_diagnostic, "non_diagnostic", f"quality {opinion.quality} of 5: {opinion.reason}")
    return Verdict(turn=turn, invert=invert, view=corrected)


def rules(pixels: Floats, plan: ContentPlan) -> tuple[tuple[str, str], ...]:
    """The kinds that an image (h, w) in [0, 1] is by the rules, with the reason of each."""
    found: list[tuple[str, str]] = []
    height, width = pixels.shape
    if min(height, width) < plan.min_side:
        found.append(("small", f"{height} x {width} pixels, fewer than {plan.min_side} on a side"))
    levels = np.bincount(np.rint(pixels.ravel() * 255).astype(np.int64), minlength=256) / pixels.size
    most = float(levels.max())
    white = float(levels[254:].sum())
    if most >= plan.most_of_one:
        found.append(("blank", f"{100 * most:.0f} % of the pixels have one grey level"))
    elif white >= plan.clipped:
        found.append(("blank", f"{100 * white:.0f} % of the pixels are white"))
    return tuple(found)


def judged_pixels(pixels: Floats) -> NDArray[np.uint8]:
    """(h, w) in [0, 1] -> (128, 128): what the network looks at, its darkest and brightest half percent cut."""
    return _stretched(pixels, (SIDE, SIDE))


def shown_pixels(pixels: Floats) -> NDArray[np.uint8]:
    """(h, w) in [0, 1] -> (h', w'), at most ``SHOWN`` a side: the same as a vision model is shown it."""
    height, width = pixels.shape
    smaller = min(1.0, SHOWN / max(height, width))
    return _stretched(pixels, (max(1, round(height * smaller)), max(1, round(width * smaller))))


def _stretched(pixels: Floats, size: tuple[int, int]) -> NDArray[np.uint8]:
    low, high = np.quantile(pixels[:: max(1, len(pixels) // 256)], [1 - _WHITE, _WHITE])
    scaled = np.clip((pixels - low) / max(float(high - low), 1e-3), 0, 1).astype(np.float32)
    return np.rint(resize(scaled, size, "area") * 255).astype(np.uint8)


class ContentNetwork(nn.Module):
    """Four strided convolutions with batch normalisation, pooled by mean and maximum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, kernel, stride in ((1, 24, 5, 4), (24, 48, 3, 2), (48, 96, 3, 2), (96, 128, 3, 2)):
            convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(outputs), nn.ReLU()]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(2 * 128 * 4, len(OUTPUTS) + 4)

    def forward(self, x: Tensor) -> Tensor:
        """(b, 1, 128, 128) in [-1, 1] -> (b, 10) logits. Quadrants are pooled apart: a place says what is where."""
        maps = self.body(x)
        mean, most = nn.functional.adaptive_avg_pool2d(maps, 2), nn.functional.adaptive_max_pool2d(maps, 2)
        return self.head(torch.cat([mean, most], dim=1).flatten(1))


def as_input(images: NDArray[np.uint8]) -> Tensor:
    """(n, 128, 128) -> (n, 1, 128, 128) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).float() / 127.5 - 1


class ContentJudge:
    """The trained network; ``accuracy`` is what its record says of it."""

    def __init__(self, network: ContentNetwork, accuracy: dict[str, Any]) -> None:
        self._network, self.accuracy = network.eval(), accuracy

    @classmethod
    def shipped(cls) -> ContentJudge:
        """The one that ships with xgem."""
        return cls.load(SHIPPED)

    @classmethod
    def load(cls, folder: Path) -> ContentJudge:
        """What :meth:`save` wrote; CheckpointError if files are missing or hold another network."""
        record, network = read_json(folder / RECORD), ContentNetwork()
        try:
            network.load_state_dict(load_file(folder / WEIGHTS))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise CheckpointError(
                f"{folder}: not a judge of content ({one_line(error)}); train it again (benchmarks/curation.py)"
            ) from None
        return cls(network, record)

    def save(self, folder: Path) -> None:
        """Write weights and record; OutputError if not possible."""
        with replacing(folder / WEIGHTS) as partial:
            save_file(self._network.state_dict(), partial)
        with replacing(folder / RECORD) as partial:
            write_json(partial, self.accuracy)

    @torch.inference_mode()
    def __call__(self, images: NDArray[np.uint8]) -> list[Scores]:
        """Scores of images (n, 128, 128) as of :func:`judged_pixels`.

        Each is looked at in four orientations: what the network says of each of them tells how the image lies (the
        mean of the log probabilities, turned back), and what it says of the upright one tells the rest.
        """
        found: list[Scores] = []
        for start in range(0, len(images), _BATCH):
            some = images[start : start + _BATCH]
            logits = torch.stack([self._network(as_input(np.rot90(some, k, axes=(1, 2)))).double() for k in range(4)])
            # An image that lies at q quarters lies at q + k after k more
            said = logits[:, :, len(OUTPUTS) :].log_softmax(dim=2)
            turned = torch.stack([said[k].roll(-k, dims=1) for k in range(4)]).mean(dim=0).softmax(dim=1)
            certain, quarters = turned.max(dim=1)
            upright = (-quarters) % 4  # in which of the four the image stands upright
            single = logits[upright, torch.arange(len(some)), : len(OUTPUTS)].sigmoid()
            for values, quarter, sure in zip(single.tolist(), quarters.tolist(), certain.tolist(), strict=True):
                found.append(Scores(*values, quarters=int(quarter), oriented=sure))
        return found
