"""The model card of a checkpoint: what its files say; results and notes are put in by who has them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Final

from xgem.checkpoints.index import checkpoint_hash, read_index
from xgem.types import CheckpointError
from xgem.utils.tables import markdown_table

UNMEASURED: Final = "This checkpoint has not been evaluated yet."
UNDOCUMENTED: Final = "Training data: not documented."
_HEAD: Final = """---
library_name: xgem
license: other
tags: [chest-radiography, synthetic-data, latent-diffusion, any-to-any]
---

# {name}

{description}

**For research only. Not for diagnosis, nor for any decision about a patient.** All its outputs are synthetic.

{notes}

## Training settings

{stages}

## Parameters

{parameters}

Checkpoint hash `{hash}`.

## Results

`xgem eval metrics` explains each metric. The classifier that judges images is trained on real training images alone,
reports are labelled by xgem's own rules (`xgem-rules`), and distances are in the named feature spaces.
References: `shuffled` has the prompts of other studies; `floor` and `ceiling` are what real images reach.

{results}
"""


def card_text(root: str | Path, *, notes: str = UNDOCUMENTED, results: str = UNMEASURED) -> str:
    """A card as Markdown: name, training settings and parameters of the checkpoint ``root``.

    Args:
        notes: data, licence and limitations, as Markdown; without them the card says that they are missing.
        results: tables of an evaluation, likewise.

    Raises:
        CheckpointError: ``root`` is not a checkpoint, or its weights cannot be read.
    """
    root = Path(root)
    index = read_index(root)
    stages = [
        (name, stage["steps"], stage["batch_size"], f"{stage['learning_rate']:g}")
        for name, stage in index.preset.get("train", {}).items()
    ]
    counts = {name: _parameters(root / name) for name in index.components}
    parameters = [(name, f"{count:,}") for name, count in [*counts.items(), ("all", sum(counts.values()))]]
    return _HEAD.format(
        name=index.preset["name"],
        description=index.preset["description"],
        notes=notes.strip(),
        stages=markdown_table(("stage", "steps", "batch size", "learning rate"), stages),
        parameters=markdown_table(("component", "parameters"), parameters),
        hash=checkpoint_hash(root),
        results=results,
    )


def _parameters(folder: Path) -> int:
    """Number of parameters in a component's weights."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in folder.glob("*.safetensors"):
        try:
            with safe_open(file, framework="pt") as tensors:
                total += sum(math.prod(tensors.get_slice(key).get_shape()) for key in list(tensors.keys()))
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file}: cannot be read ({error}); fetch the checkpoint again") from error
    return total
