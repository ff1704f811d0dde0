"""The pipeline of a tiny checkpoint, and images to give it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from xgem.pipeline.pipeline import XgemPipeline

QUICK: dict[str, Any] = {"num_inference_steps": 2, "progress": False}
NORMAL = "No acute cardiopulmonary abnormality."
EFFUSION = "Large left pleural effusion."


def radiograph(seed: int = 0, size: int = 64) -> np.ndarray:
    """A smooth synthetic image in [0, 1]; nothing of a patient's."""
    y, x = np.mgrid[0:size, 0:size] / size
    phase = np.random.default_rng(seed).uniform(0, 6, 3)
    return (0.5 + 0.2 * np.sin(5 * x + phase[0]) + 0.2 * np.cos(7 * y + phase[1] + 3 * x)).astype(np.float32)


@pytest.fixture(scope="session")
def checkpoint(debug_checkpoint: Path) -> Path:
    return debug_checkpoint


@pytest.fixture(scope="module")
def pipeline(checkpoint: Path) -> XgemPipeline:
    return XgemPipeline.from_pretrained(checkpoint, device="cpu")


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float32) / 255


def same(one: Any, other: Any) -> bool:
    return one.tobytes() == other.tobytes()
