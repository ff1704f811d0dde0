"""The first 20 steps of every training stage against losses kept in ``golden/``, one JSON file a stage.

They catch a change of the arithmetic of training that no other test sees: data order, augmentation, initial weights,
loss terms, schedule, optimiser, averaging. Every number that a stage logs is compared, and its last validation loss.
Stages that build on one another are trained one after the other, so a changed stage also changes those after it.

A change of training on purpose needs new files::

    XGEM_UPDATE_GOLDEN=1 python -m pytest tests/train/test_golden_losses.py

Add ``-k STAGE`` to write the file of one stage alone. Say in the commit why the losses changed.

``RTOL`` lies between rounding errors and a real change. Without oneDNN, or with AVX2 in place of AVX-512, losses differ
by up to 3e-4; with a learning rate 5 % higher in one stage alone, that stage's by 2e-3 to 5e-2. Learning rates are low
because Adam's first steps follow the sign of a gradient however small, which turns rounding errors into other weights.
Batch norm makes this worse in ``reid``: its first five steps are held to 3e-3 (rounding: 1e-3, learning rate: 5e-3),
the rest to ``LOOSE``.
The image codec has no linear shortcut here: principal components have a sign that depends on the LAPACK in use.
"""

from __future__ import annotations

import json
import math
import os
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image

from xgem.configs import Preset, load_preset
from xgem.data.manifest import Manifest
from xgem.train import reid
from xgem.train.loop import LoopOptions
from xgem.train.stages import run, stages

GOLDEN = Path(__file__).with_name("golden")
UPDATE = bool(os.environ.get("XGEM_UPDATE_GOLDEN"))
QUIET = LoopOptions(progress=False, tensorboard=False, log_every=1)
STEPS = 20
SEED = 17
RTOL, LOOSE, ATOL = 1e-3, 0.1, 1e-5

COMMON: dict[str, Any] = {
    "steps": STEPS, "batch_size": 8, "learning_rate": 2e-4, "warmup_steps": 2, "final_lr_fraction": 0.1,
    "weight_decay": 0.01, "ema_decay": 0.9, "validate_every": STEPS, "checkpoint_every": STEPS,
}  # fmt: skip
"""The settings of every stage."""
LEFT_OUT = ("step", "steps_per_s", "grad_norm", "accuracy")
"""What is logged and not compared: a speed; a norm that amplifies rounding errors; a share that jumps."""


class Case(NamedTuple):
    """A stage of a preset, and its settings beside ``COMMON``; ``rtol`` holds for its ``steady`` first steps."""

    preset: str
    stage: str
    settings: dict[str, Any]
    rtol: float = RTOL
    steady: int = STEPS


# In training order. Loss settings switch on within 20 steps what real presets use later or only in part.
CASES = {
    "image-vae": Case("debug", "image-vae", {}),
    "image-decoder": Case(
        "debug", "image-decoder", {"learning_rate": 5e-5, "loss": {"after": 10.0, "adversarial": 0.1}}
    ),
    "clip": Case("debug", "clip", {"learning_rate": 1e-3, "loss": {"labels": 2.0}}),
    "report-vae": Case("debug", "report-vae", {"learning_rate": 1e-3, "loss": {"kl": 0.5, "free_bits": 0.1}}),
    "frontal": Case("debug", "frontal", {}),
    "lateral": Case("debug", "lateral", {}),
    "report": Case("debug", "report", {"learning_rate": 1e-3}),
    "joint": Case(
        "debug", "joint", {"learning_rate": 1e-4, "loss": {"alone": 5.0, "contrastive": 0.2, "lowest": 100.0}}
    ),
    "frontal-dit": Case("debug-chexgen", "frontal", {"loss": {"known": 0.5}}),
    "control": Case("debug-chexgen", "control", {"loss": {"masks": 3.0, "severity": 2.0}}),
    "reid": Case("debug", "reid", {"learning_rate": 1e-3, "batch_size": 32, "warmup_steps": 20}, rtol=3e-3, steady=5),
}

Series = dict[str, list[float | None]]
"""What a stage logs, by name: one number a step, None where it logs none."""


# ----------------------------------------------------------------------------------------------------------- data

REPORTS = (
    ("No acute disease. Clear lungs.", ("normal",)),
    ("Large left pleural effusion. Clear right lung. Normal heart.", ("Pleural Effusion",)),
    ("Cardiomegaly. Small bilateral effusions. No pneumothorax.", ("Cardiomegaly", "Pleural Effusion")),
)
# The views of a study and whether it has a report.
KINDS = ((("frontal", "lateral"), True), (("frontal", "frontal", "lateral"), True), (("frontal",), True),
         (("lateral",), True), (("frontal", "lateral"), False))  # fmt: skip


def write_image(path: Path, rng: np.random.Generator, number: int, view: str) -> None:
    """Two stripe patterns, which depend on study and view, and noise: 40 x 40 pixels, 8 bits."""
    y, x = np.mgrid[0:40, 0:40] / 40
    waves = 127 + 60 * np.sin(6 * x + number) + 40 * np.cos((5 + len(view) % 3) * y + number // 2)
    Image.fromarray((waves + rng.normal(0, 6, x.shape)).clip(0, 255).astype(np.uint8)).save(path)


def write_masks(folder: Path, study: str) -> dict[str, list[str]]:
    masks = {}
    for name, columns in (("left lung", slice(24, 36)), ("right lung", slice(4, 16))):
        mask = np.zeros((40, 40), np.uint8)
        mask[8:32, columns] = 255
        masks[name] = [f"{study} {name}.png"]
        Image.fromarray(mask).save(folder / masks[name][0])
    return masks


def write_data(folder: Path) -> Path:
    """A manifest with all that any stage learns from: both views, reports, labels, annotations, pairs of studies."""
    rng = np.random.default_rng(SEED)
    rows: list[dict[str, Any]] = []
    for split, count in (("train", 40), ("val", 12)):
        for number in range(count):
            study = f"{split}{number:02d}"
            views, has_report = KINDS[number % len(KINDS)]
            text, labels = REPORTS[number % len(REPORTS)] if has_report else ("", ())
            row: dict[str, Any] = {"study": study, "subject": f"{split}-patient{number // 2}", "split": split}
            row |= {"impression": text, "labels": labels, "source": "synthetic"}
            if number % 3 == 0:
                row |= {"sex": "FM"[number % 2], "age": 30.0 + number}
            annotations: dict[str, Any] = {}
            if "frontal" in views and number % 4 == 0:
                annotations = {"masks": write_masks(folder, study)}
            elif "frontal" in views and number % 4 == 1:
                box = {"label": "mass", "x": 0.25, "y": 0.5, "w": 0.25, "h": 0.25}
                annotations = {"boxes": [box], "severity": float(number % 18)}
            for k, view in enumerate(views):
                file = f"{study}-{k}.png"
                write_image(folder / file, rng, number, view)
                rows.append(row | annotations | {"view": view, "file": file})
    path = folder / "synthetic.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


# ------------------------------------------------------------------------------------------------------- training


def tiny(name: str, changes: dict[str, dict[str, Any]]) -> Preset:
    """A preset of tiny sizes with this file's settings, and ``changes`` of them by case."""
    record = load_preset(name).model_dump(mode="json")
    record["components"]["image_vae"]["shortcut"] = False
    if "report_vae" in record["components"]:
        record["components"]["report_vae"]["dropout"] = 0.0  # drawn by process, all else by sample
    record["train"] = {
        case.stage: COMMON | case.settings | changes.get(key, {})
        for key, case in CASES.items()
        if case.preset == name and case.stage != "reid"
    }
    return Preset.parse(record, name)


def train_all(
    manifest: Path, root: Path, *, seed: int = SEED, changes: dict[str, dict[str, Any]] | None = None
) -> dict[str, Series]:
    """Train every case below ``root``; returns what each logs."""
    changes = changes or {}
    train_presets(manifest, root, seed=seed, changes=changes)
    data = Manifest.read(manifest)
    with pytest.MonkeyPatch.context() as patch:
        settings = COMMON | CASES["reid"].settings | changes.get("reid", {})
        debug = reid.PRESETS["debug"]
        assert debug.train is not None
        train = debug.train.model_copy(update=settings)
        patch.setitem(reid.PRESETS, "debug", replace(debug, train=train))
        (root / "reid").mkdir()
        reid.run(data, root / "reid", QUIET, preset="debug", seed=seed, progress=False)
    return {key: logged(key, root) for key in CASES}


def train_presets(
    manifest: Path,
    root: Path,
    *,
    seed: int = SEED,
    changes: dict[str, dict[str, Any]] | None = None,
    options: LoopOptions = QUIET,
) -> None:
    """Train every case but ``reid`` below ``root``."""
    for name, init in (("debug", None), ("debug-chexgen", root / "debug")):
        # The second takes text encoder and codec from the first.
        stages = [case.stage for case in CASES.values() if case.preset == name and case.stage != "reid"]
        run(stages, tiny(name, changes or {}), Manifest.read(manifest), root / name, options, seed=seed, init=init)


def logged(key: str, root: Path) -> Series:
    """What a case below ``root`` has logged."""
    case = CASES[key]
    return read_log((root / "reid" if case.stage == "reid" else root / case.preset) / "training" / case.stage)


def train_one(manifest: Path, root: Path, *, seed: int = SEED, changes: dict[str, Any] | None = None) -> Series:
    """Train the image codec alone, the one stage that builds on no other; returns what it logs."""
    preset = tiny("debug", {"image-vae": changes or {}})
    run(["image-vae"], preset, Manifest.read(manifest), root, QUIET, seed=seed)
    return read_log(root / "training" / "image-vae")


def read_log(folder: Path) -> Series:
    """A stage's log as series of numbers: all that it logs at its steps but its speed, and its last validation loss."""
    lines = (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines]
    steps = [entry for entry in entries if "loss" in entry]
    assert [entry["step"] for entry in steps] == list(range(1, STEPS + 1))
    names = dict.fromkeys(name for entry in steps for name in entry if name not in LEFT_OUT)
    (validation,) = (entry["val/loss"] for entry in entries if "val/loss" in entry)
    return {name: [entry.get(name) for entry in steps] for name in names} | {"validation": [validation]}


# ----------------------------------------------------------------------------------------------------- comparison


def settings_of(key: str) -> dict[str, Any]:
    case = CASES[key]
    return {"preset": case.preset, "stage": case.stage, "seed": SEED, "train": COMMON | case.settings}


def write_golden(key: str, found: Series) -> None:
    """One line a series, so that a diff shows which changed."""
    versions = {"torch": torch.__version__, "numpy": np.__version__, "machine": platform.machine()}
    lines = [
        f'  "settings": {json.dumps(settings_of(key))},',
        f'  "made_with": {json.dumps(versions)},',
        '  "logged": {',
    ]
    series = (
        f'    "{name}": {json.dumps([None if x is None else float(f"{x:.7g}") for x in values])}'
        for name, values in found.items()
    )
    text = "\n".join(["{", *lines, ",\n".join(series), "  }", "}"]) + "\n"
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / f"{key}.json").write_text(text, encoding="utf-8")


def read_golden(key: str) -> Series:
    path = GOLDEN / f"{key}.json"
    assert path.is_file(), f"no {path.name}: make it with XGEM_UPDATE_GOLDEN=1"
    record = json.loads(path.read_text(encoding="utf-8"))
    assert record["settings"] == settings_of(key), (
        f"{path.name} is of other settings: make it with XGEM_UPDATE_GOLDEN=1"
    )
    return record["logged"]


def differences(key: str, found: Series, golden: Series) -> list[str]:
    """A line for each series that differs, with the first step where it does."""
    case = CASES[key]
    lines = [f"{name}: logged in one of the two alone" for name in sorted(set(found) ^ set(golden))]
    for name in sorted(golden.keys() & found.keys()):
        pairs = list(zip(found[name], golden[name], strict=True))
        first = STEPS if name == "validation" else 1
        wrong = [
            (step, now, kept)
            for step, (now, kept) in enumerate(pairs, start=first)
            if not agree(now, kept, case.rtol if step <= case.steady else LOOSE)
        ]
        if wrong:
            step, now, kept = wrong[0]
            lines.append(f"{name}: {len(wrong)} of {len(pairs)} differ, first at step {step}: {now}, kept {kept}")
    return lines


def agree(now: float | None, kept: float | None, rtol: float) -> bool:
    if now is None or kept is None:
        return now is kept
    return math.isclose(now, kept, rel_tol=rtol, abs_tol=ATOL)


# ---------------------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def trained(manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Series]:
    torch.set_num_threads(1)
    return train_all(manifest, tmp_path_factory.mktemp("golden"))


@pytest.mark.parametrize("key", CASES)
def test_the_first_steps_are_those_kept(key: str, trained: dict[str, Series]) -> None:
    if UPDATE:
        write_golden(key, trained[key])
        pytest.skip(f"wrote {key}.json")
    assert differences(key, trained[key], read_golden(key)) == []


CHANGES: dict[str, dict[str, Any]] = {
    "nothing": {},
    "seed": {"seed": SEED + 1},
    "learning rate": {"changes": {"learning_rate": 1.05 * COMMON["learning_rate"]}},
    "loss weight": {"changes": {"loss": {"gradient": 0.55}}},
    "weight of a small term": {"changes": {"loss": {"kl": 0.002}}},
    "momentum": {"changes": {"betas": (0.8, 0.999)}},
}


@pytest.mark.skipif(UPDATE, reason="writes the files that it compares with")
@pytest.mark.parametrize("name", CHANGES)
def test_a_small_change_of_training_is_seen(name: str, manifest: Path, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    found = differences("image-vae", train_one(manifest, tmp_path, **CHANGES[name]), read_golden("image-vae"))
    assert bool(found) == (name != "nothing"), found


def test_every_stage_is_covered() -> None:
    assert {*stages(), "reid"} == {case.stage for case in CASES.values()}
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(CASES)
