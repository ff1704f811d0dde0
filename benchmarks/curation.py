"""Fits what `xgem data curate` looks at pictures with.

    python benchmarks/curation.py fingerprint --data DATA --out xgem/assets/judges/fingerprint
    python benchmarks/curation.py content --data DATA --out xgem/assets/judges/content

DATA is the folder of the data sets (openi, nih, nih_boxes, hannover, severity, segmentations, covid), of which the
subjects whose hash is in split train are used (`xgem.data.manifest.split_of`, 15 % each for val and test). Measured by
curation_planted.py (pictures of the others), curation_lies.py (texts) and curation_scale.py (memory, interruptions).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from pictures import CHANGES, brighter, collage, cropped, not_chest, others, real, resized, with_text

from xgem.curation.content import OUTPUTS, ContentJudge, ContentNetwork, as_input, judged_pixels

SEED = 0
RIDGE = 0.02
STEPS, BATCH = 760, 48
KINDS = ("plain", "turned", "inverted", "mirrored", "both", "text", "collage", "other")
SHARES = (0.22, 0.16, 0.09, 0.06, 0.05, 0.14, 0.1, 0.18)


def example(kind: str, pool: Any, rng: np.random.Generator, pictures: list[Any]) -> tuple[Any, Any]:
    """A changed picture (128, 128) uint8, and its targets (7,), NaN where they do not apply; the last are quarters."""
    targets = np.full(len(OUTPUTS) + 1, np.nan)
    if kind == "other":
        targets[0] = 0
        return judged_pixels(not_chest(rng, pictures)), targets
    one = pool[rng.integers(len(pool))]
    pixels = brighter(cropped(one.pixels, rng), rng)
    if kind == "collage":
        targets[:2] = 1, 1
        images = [pixels, *(pool[rng.integers(len(pool))].pixels for _ in range(3))]
        return judged_pixels(collage(images, rng)), targets
    lateral = one.view == "lateral"
    targets[:] = (
        1,
        0,
        kind == "text",
        np.nan if lateral else kind in ("mirrored",),
        kind in ("inverted", "both"),
        lateral,
        0,
    )
    pixels = with_text(pixels, rng) if kind == "text" else pixels
    pixels = pixels[:, ::-1] if kind == "mirrored" and not lateral else pixels
    if kind in ("turned", "both"):
        targets[-1] = rng.integers(1, 4)
        targets[3] = np.nan
        pixels = np.rot90(pixels, int(targets[-1]))
    pixels = 1 - pixels if targets[4] else pixels
    return judged_pixels(pixels), targets


def fit_content(options: argparse.Namespace) -> None:
    """Trains the judge of content."""
    import torch
    from torch.nn import functional as F

    torch.manual_seed(SEED)
    rng = np.random.default_rng(SEED)
    limit = {"openi": 900, "nih": 1300}
    pool = real(options.data, ("train",), limit)
    pool = [type(one)(one.file, one.view, one.subject, one.source, one.split, small(one.pixels)) for one in pool]
    pictures = others(held_out=False)
    network = ContentNetwork()
    steps = options.steps
    optimiser = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 3e-3, total_steps=steps)
    network.train()
    for step in range(steps):
        kinds = rng.choice(KINDS, BATCH, p=SHARES)
        images, targets = zip(*(example(kind, pool, rng, pictures) for kind in kinds), strict=True)
        truth = torch.tensor(np.stack(targets), dtype=torch.float32)
        logits = network(as_input(np.stack(images)))
        known = ~truth[:, :-1].isnan()
        single = F.binary_cross_entropy_with_logits(logits[:, : len(OUTPUTS)][known], truth[:, :-1][known])
        upright = ~truth[:, -1].isnan()
        turned = F.cross_entropy(logits[upright, len(OUTPUTS) :], truth[upright, -1].long())
        optimiser.zero_grad()
        (single + turned).backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            print(step, round(single.item(), 4), round(turned.item(), 4), flush=True)
    record = {
        "data": "train split of " + ", ".join(sorted({one.source for one in pool})),
        "n": len(pool),
        "others": "photographs, textures, microscopy, pages, charts, noise and single CT and MR slices; no radiographs "
        "of other parts of the body, which were not at hand",
        "seed": SEED,
        "steps": steps,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    ContentJudge(network, record).save(options.out)


def small(pixels: Any) -> Any:
    """Pixels at no more than 192 on the shorter side: what training needs."""
    scale = 192 / min(pixels.shape)
    return pixels if scale >= 1 else resized(pixels, *(round(side * scale) for side in pixels.shape))


def fit_fingerprint(options: argparse.Namespace) -> None:
    """Fits the directions of fingerprints: pictures are the classes, changes of a picture the scatter within."""
    from safetensors.numpy import save_file

    from xgem.curation.fingerprint import DIM, spectrum, thumbnail

    rng = np.random.default_rng(SEED)
    pool = real(options.data, ("train",), {"openi": 600, "nih": 900})
    plain = spectrum(np.stack([thumbnail(one.pixels) for one in pool])).astype(np.float64)
    chosen = rng.permutation(len(pool))[:400]
    kinds = ("brightness", "cropped", "JPEG", "several")
    changed = [[thumbnail(CHANGES[kind](pool[k].pixels, rng)) for k in chosen] for kind in kinds]
    differences = np.concatenate([spectrum(np.stack(some)) - plain[chosen] for some in changed])
    within = differences.T @ differences / len(differences)
    within += np.eye(len(within)) * RIDGE * np.trace(within) / len(within)
    whitening = np.linalg.inv(np.linalg.cholesky(within))
    values, vectors = np.linalg.eigh(whitening @ np.cov(plain.T) @ whitening.T)
    directions = vectors[:, np.argsort(values)[::-1][:DIM]].T @ whitening
    options.out.mkdir(parents=True, exist_ok=True)
    state = {"directions": directions, "mean": plain.mean(axis=0)}
    save_file({name: value.astype(np.float32) for name, value in state.items()}, options.out / "model.safetensors")
    print(f"fitted on {len(differences)} changes of {len(chosen)} of {len(pool)} pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fingerprint", "content"))
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args()
    {"content": fit_content, "fingerprint": fit_fingerprint}[options.what](options)


if __name__ == "__main__":
    main()
