"""What a training run leaves beside its checkpoints: losses as JSON lines, sheets, and both for TensorBoard."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from xgem.checkpoints.training import writable

log = logging.getLogger(__name__)


class Logs:
    """The logs of one run in the folder ``work``, which goes on at ``step``.

    Only the main process writes (``wanted``); every method raises OutputError where the disk does not take more.
    """

    def __init__(self, work: Path, step: int, *, wanted: bool, tensorboard: bool) -> None:
        self.work, self.wanted = work, wanted
        self.writer = _tensorboard(work / "tensorboard", step) if wanted and tensorboard else None
        if wanted:
            trim(work / "log.jsonl", step)

    def record(self, entry: Mapping[str, float]) -> None:
        """Append the numbers of a step to ``log.jsonl`` and to TensorBoard."""
        if not self.wanted:
            return
        with writable(self.work), (self.work / "log.jsonl").open("a") as handle:
            handle.write(json.dumps(entry) + "\n")
        if self.writer:
            for key, value in entry.items():
                self.writer.add_scalar(key, value, entry["step"])

    def sheet(self, sheet: Image.Image | str | None, step: int) -> None:
        """Keep a sample sheet, an image or a text, as a file and in TensorBoard."""
        if not self.wanted or sheet is None:
            return
        file = self.work / f"sheet-{step:08d}"
        with writable(self.work):
            if isinstance(sheet, Image.Image):
                sheet.save(file.with_suffix(".png"))
            else:
                file.with_suffix(".txt").write_text(sheet, encoding="utf-8")
        if self.writer and isinstance(sheet, Image.Image):
            self.writer.add_image("sheet", np.asarray(sheet.convert("L")), step, dataformats="HW")
        elif self.writer:
            self.writer.add_text("sheet", "\n".join(f"    {line}" for line in str(sheet).splitlines()), step)

    def __enter__(self) -> Logs:
        return self

    def __exit__(self, *_: object) -> None:
        """Write what TensorBoard has not yet written."""
        if self.writer:
            self.writer.close()


def trim(path: Path, step: int) -> None:
    """Drop lines that a killed run wrote after its last checkpoint."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue  # a line cut short by the kill
        if entry["step"] <= step:
            kept.append(line)
    path.write_text("".join(line + "\n" for line in kept))


def _tensorboard(folder: Path, step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        log.info("tensorboard is not installed: logs go to JSONL only")
        return None
    return SummaryWriter(str(folder), purge_step=step)
