"""What all configurations have in common."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Role = Literal["encoder", "codec", "generator", "control", "alignment"]
"""What a component does."""


class Config(BaseModel):
    """Frozen, and without unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)
