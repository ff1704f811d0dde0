"""``xgem train lora`` and ``full``: text-to-image pipelines of diffusers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from xgem.configs.changes import with_stage_settings
from xgem.types import InputError
from xgem.utils.signals import interruptible

if TYPE_CHECKING:
    from xgem.train.loop import LoopOptions
    from xgem.train.peers.settings import PeerTraining

PEERS: Final = ("lora", "full")
"""The stages that train a pipeline of diffusers."""


@dataclass(frozen=True, kw_only=True)
class Peer:
    """The pipeline to train, and the name of its settings."""

    base: Annotated[
        str | None,
        typer.Option(
            "--base", metavar="MODEL", help="For lora and full, the pipeline to train: diffusers:ID-OR-FOLDER."
        ),
    ] = None
    peer_settings: Annotated[
        str | None,
        typer.Option(
            "--settings", metavar="NAME", help="For lora and full: default, chexgenbench or debug.", show_default=False
        ),
    ] = None

    def check(self, stage: str, others: Mapping[str, Any]) -> None:
        """InputError where these options, or the ``others`` by flag, do not belong to a stage."""
        if stage not in PEERS:
            if self.base or self.peer_settings:
                raise InputError(f"stage {stage!r} takes neither --base nor --settings, only lora and full do")
            return
        given = [name for name, value in others.items() if value is not None]
        if given:
            raise InputError(f"{given[0]}: stage {stage!r} does not take it; leave it out")
        if self.base is None:
            raise InputError(
                f"stage {stage!r} trains a pipeline of diffusers: name it by --base diffusers:ID-OR-FOLDER"
            )

    def train(
        self,
        stage: str,
        data: Path,
        out: Path,
        loop: LoopOptions,
        device: str | None,
        *,
        seed: int,
        steps: int | None,
        settings: Sequence[str],
    ) -> None:
        """Train; ``settings`` are those of ``--set``."""
        from xgem.data.manifest import Manifest
        from xgem.train.peers.run import run
        from xgem.train.peers.settings import Kind, settings_of
        from xgem.train.processes import together

        kind = cast(Kind, stage)

        def chosen(pipeline: str, studies: int) -> PeerTraining:
            config = settings_of(kind, self.peer_settings or "default", pipeline, studies)
            return cast("PeerTraining", with_stage_settings({stage: config}, settings, steps=steps)[stage])

        with together(device), interruptible("the same command goes on from the last checkpoint"):
            run(kind, str(self.base), Manifest.read(data), out, loop, settings=chosen, seed=seed)
