"""Shards of encoded studies: the samples are those from memory, whoever writes them; wrong ones are refused."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.train.test_golden_losses import QUIET, SEED, read_log, tiny, write_data
from xgem.configs.preset import Preset
from xgem.convert.random_init import random_checkpoint
from xgem.data.cache import ArrayCache
from xgem.data.manifest import Manifest
from xgem.train.banks import TargetBank
from xgem.train.corpus import Corpus
from xgem.train.encode import encode
from xgem.train.encoded import EncodedStudies
from xgem.train.source import InMemory, studies_with
from xgem.train.stages import run, run_encoded
from xgem.types import CheckpointError, DataError, InputError, OutputError
from xgem.utils.shards import Shard

CPU = torch.device("cpu")
SIZE = 7
STAGES = {"debug": ["frontal", "lateral", "report", "joint"], "debug-chexgen": ["frontal"]}


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def presets() -> dict[str, Preset]:
    # A class has fewer than ten studies otherwise
    return {name: tiny(name, {"frontal": {"loss": {"balanced": 0.5}}}) for name in STAGES}


@pytest.fixture(scope="module")
def checkpoints(presets: dict[str, Preset], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {}
    for name, preset in presets.items():
        found[name] = tmp_path_factory.mktemp("model") / name
        random_checkpoint(found[name], preset, seed=1)
    return found


@pytest.fixture(scope="module")
def folders(
    manifest: Path,
    presets: dict[str, Preset],
    checkpoints: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Path]:
    """Finished shards, by preset; read only."""
    found = {}
    for name in STAGES:
        found[name] = tmp_path_factory.mktemp("encoded") / name
        done = encode(manifest, presets[name], checkpoints[name], found[name], studies_per_shard=SIZE)
        assert (done.made, done.missing, done.shards) == (8, 0, 8)  # 40 and 12 studies
    return found


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """Shards of the preset debug that a test may alter."""
    return Path(shutil.copytree(folders["debug"], tmp_path / "encoded"))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", STAGES)
def test_shards_hold_what_banks_hold(
    name: str,
    split: str,
    manifest: Path,
    presets: dict[str, Preset],
    checkpoints: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    from xgem.checkpoints import store

    preset = presets[name]
    corpus = Corpus.load(Manifest.read(manifest), split, preset, tmp_path, progress=False)
    memory = InMemory(corpus, ArrayCache(tmp_path), CPU)
    disk = EncodedStudies.open(folders[name]).split(split)
    for modality in preset.outputs:
        bank = memory.targets(modality, store.load_component(checkpoints[name], preset.codec(modality)))
        assert isinstance(bank, TargetBank)
        read = disk.targets(modality, None)
        assert np.array_equal(read.rows.ends, bank.rows.ends)
        rows = list(range(len(bank.latents)))[::-1]
        torch.testing.assert_close(read.take(rows), bank.take(rows).half().float(), rtol=2e-3, atol=1e-4)
        torch.testing.assert_close(read.mean(), bank.mean(), rtol=1e-3, atol=1e-4)
        usable = studies_with(bank)
        assert usable.tolist() == studies_with(read).tolist()
        assert [list(group) for group in disk.by_class(usable)] == [list(group) for group in memory.by_class(usable)]
        assert [list(group) for group in disk.by_field(usable, 0)] == [
            list(group) for group in memory.by_field(usable, 0)
        ]
    usable = studies_with(disk.targets("frontal", None))
    assert bool(memory.by_class(usable)) == (split == "train")
    assert bool(memory.by_field(usable, 0)) == (name == "debug-chexgen")
    for modality in {"debug": ["frontal", "lateral", "report"], "debug-chexgen": ["report"]}[name]:
        held = memory.prompts(modality, store.load_component(checkpoints[name], preset.encoder(modality)))
        kept = disk.prompts(modality, None)
        assert np.array_equal(kept.rows.ends, held.rows.ends)
        for chosen in ([0], [3, 0, 5, 0], list(range(int(held.rows.ends[-1])))):
            a, b = held.encoded(chosen), kept.encoded(chosen, CPU)
            assert torch.equal(a.mask, b.mask)
            torch.testing.assert_close(b.pooled, a.pooled, rtol=2e-3, atol=1e-3)
            torch.testing.assert_close(b.tokens[b.mask], a.tokens[a.mask], rtol=2e-3, atol=2e-3)
            assert not b.tokens[~b.mask].any()


@pytest.mark.parametrize("name", STAGES)
def test_losses_are_those_from_memory(
    name: str,
    manifest: Path,
    presets: dict[str, Preset],
    checkpoints: dict[str, Path],
    folders: dict[str, Path],
    tmp_path: Path,
) -> None:
    roots = [Path(shutil.copytree(checkpoints[name], tmp_path / kind)) for kind in ("memory", "disk")]
    run(STAGES[name], presets[name], Manifest.read(manifest), roots[0], QUIET, seed=SEED)
    run_encoded(STAGES[name], presets[name], manifest, folders[name], roots[1], QUIET, seed=SEED)
    for stage in STAGES[name]:
        expected, found = (read_log(root / "training" / stage) for root in roots)
        assert expected.keys() == found.keys()
        for key, values in expected.items():
            pairs = [(a, b) for a, b in zip(found[key], values, strict=True) if b is not None]
            np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=3e-3, err_msg=f"{stage} {key}")


def test_a_resumed_run_equals_an_unbroken_one(
    manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    from xgem.checkpoints.store import component_hash

    roots = [Path(shutil.copytree(checkpoints["debug"], tmp_path / kind)) for kind in ("unbroken", "resumed")]
    where = ["frontal"], presets["debug"], manifest, folders["debug"]
    run_encoded(*where, roots[0], QUIET, seed=SEED)
    for _ in range(25):  # a step a call
        states = run_encoded(*where, roots[1], replace(QUIET, resume=True, until=time.monotonic()), seed=SEED)
        if states["frontal"].step == 20:
            break
    assert component_hash(roots[0], "frontal") == component_hash(roots[1], "frontal")


def test_workers_read_ahead(
    manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    logs = []
    for workers in (0, 2):
        preset = presets["debug"]
        stage = preset.train["frontal"].model_copy(update={"workers": workers})
        preset = preset.model_copy(update={"train": {**preset.train, "frontal": stage}})
        root = Path(shutil.copytree(checkpoints["debug"], tmp_path / str(workers)))
        run_encoded(["frontal"], preset, manifest, folders["debug"], root, QUIET, seed=SEED)
        logs.append(read_log(root / "training" / "frontal"))
    assert logs[0] == logs[1]


# ------------------------------------------------------------------------------------------------------- writing


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shares_of_processes_make_the_same_files(
    manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = tmp_path / "data.parquet"
    Manifest.read(manifest).write(copy)  # of the same rows, but another file
    out = tmp_path / "out"
    where = presets["debug"], checkpoints["debug"], out
    done = [encode(manifest, *where, share=Shard(k, 3), studies_per_shard=SIZE) for k in (2, 0, 1)]
    assert [(one.made, one.missing) for one in done] == [(2, 6), (3, 3), (3, 0)]
    assert contents(out) == contents(folders["debug"])
    assert encode(manifest, *where, studies_per_shard=SIZE).made == 0
    assert contents(out) == contents(folders["debug"])
    with pytest.raises(OutputError, match="shards of another manifest; choose another folder"):
        encode(copy, *where, studies_per_shard=SIZE)
    with pytest.raises(OutputError, match="shards of another studies_per_shard"):
        encode(manifest, *where, studies_per_shard=8)
    encode(copy, *where[:2], tmp_path / "parquet", studies_per_shard=SIZE)
    assert {path.name for path in (tmp_path / "parquet").iterdir()} == set(contents(out))


_KILLED = """
import sys, time
from pathlib import Path
import xgem.train.encode as module
from xgem.configs.preset import load_preset
write = module.write_arrays
def slow(path, arrays, metadata):
    with path.with_name(f".{path.name}.0.part").open("wb") as stream:  # what a kill leaves of a write
        stream.write(b"half")
    time.sleep(0.2)
    return write(path, arrays, metadata)
module.write_arrays = slow
module.encode(Path(sys.argv[1]), load_preset(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]), studies_per_shard=7)
"""


def test_a_killed_run_loses_and_doubles_nothing(
    manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    out, preset = tmp_path / "out", tmp_path / "preset.yaml"
    preset.write_text(json.dumps(presets["debug"].model_dump(mode="json")), encoding="utf-8")
    call = [sys.executable, "-c", _KILLED, *map(str, (manifest, preset, checkpoints["debug"], out))]
    process = subprocess.Popen(call)
    while not len(list(out.glob("train-*.json"))) >= 3:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    made = len(list(out.glob("*-0*.json")))
    assert 3 <= made < 8
    assert list(out.glob(".*.part"))
    with pytest.raises(DataError, match=r"has no index\.json, which `xgem data encode` writes last"):
        EncodedStudies.open(out)
    done = encode(manifest, presets["debug"], checkpoints["debug"], out, studies_per_shard=SIZE)
    assert (done.made, done.missing) == (8 - made, 0)
    assert contents(out) == contents(folders["debug"])


def test_what_cannot_be_encoded(
    manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    preset = presets["debug"]
    with pytest.raises(CheckpointError, match="has no 'image_vae': train it first"):
        encode(
            manifest, preset, checkpoints["debug-chexgen"] if False else _without(checkpoints, tmp_path), tmp_path / "a"
        )
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputError, match=r"holds other files \(notes\.txt\)"):
        encode(manifest, preset, checkpoints["debug"], tmp_path / "own")
    lines = [line for line in manifest.read_text(encoding="utf-8").splitlines() if '"train"' in line]
    alone = manifest.with_name("train.jsonl")
    alone.write_text("\n".join(lines) + "\n", encoding="utf-8")
    with pytest.raises(DataError, match="no studies in split 'val'"):
        encode(alone, preset, checkpoints["debug"], tmp_path / "b")


def _without(checkpoints: dict[str, Path], tmp_path: Path) -> Path:
    root = Path(shutil.copytree(checkpoints["debug"], tmp_path / "without"))
    index = json.loads((root / "model_index.json").read_text(encoding="utf-8"))
    del index["components"]["image_vae"]
    (root / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    return root


def test_pretrained_parts_are_taken_as_they_are(
    manifest: Path, presets: dict[str, Preset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T5 and Stable Diffusion's VAE are put into the checkpoint, and no encoder is loaded to train from its shards."""
    from tests.train.test_init import write_t5, write_vae
    from xgem.checkpoints import store
    from xgem.encoders.t5 import T5Encoder

    record = presets["debug-chexgen"].model_dump(mode="json")
    parts = record["components"]
    parts["text_encoder"] = {"kind": "t5_encoder", "pretrained": str(write_t5(tmp_path / "t5"))}
    parts["image_vae"] = {"kind": "image_vae", "pretrained": str(write_vae(tmp_path / "vae")), "image_size": 32}
    parts["frontal_dit"] |= {"latent_shape": [4, 16, 16], "context_dim": 16, "pooled_dim": 16}
    parts["control"] |= {"latent_shape": [4, 16, 16]}
    preset = Preset.parse(record, "pretrained")
    for name in ("encoder", "root"):
        store.init_checkpoint(tmp_path / name, preset)
    encode(manifest, preset, tmp_path / "encoder", tmp_path / "shards")
    assert set(store.read_index(tmp_path / "encoder").components) == {"image_vae", "text_encoder"}
    where = ["frontal"], preset, manifest, tmp_path / "shards"
    run_encoded(*where, tmp_path / "root", QUIET, seed=SEED)
    monkeypatch.delattr(T5Encoder, "from_config")  # its files are those that it was encoded with
    run_encoded(*where, tmp_path / "root", replace(QUIET, resume=True), seed=SEED)


# ------------------------------------------------------------------------------------------------------- bad shards


def test_shards_of_other_data_or_encoders_are_refused(
    manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], folders: dict[str, Path], tmp_path: Path
) -> None:
    preset, folder = presets["debug"], folders["debug"]

    def train(data: Path = manifest, root: Path = checkpoints["debug"], of: Preset = preset, *stages: str) -> None:
        copy = Path(shutil.copytree(root, tmp_path / f"root{len(list(tmp_path.iterdir()))}"))
        run_encoded(stages or ("frontal",), of, data, folder, copy, QUIET, seed=SEED)

    other = manifest.with_name("other.jsonl")
    other.write_text(manifest.read_text(encoding="utf-8").replace("Clear lungs", "Lungs clear"), encoding="utf-8")
    with pytest.raises(DataError, match="encoded from another manifest than --data"):
        train(other)
    with pytest.raises(InputError, match=r"no such manifest; give the one"):
        train(manifest.with_name("none.jsonl"))
    for part, value in (("captions", "qualified"), ("prefix", "always")):
        with pytest.raises(DataError, match=f"a preset with another {part}"):
            train(of=preset.model_copy(update={part: value}))
    root = tmp_path / "other weights"
    random_checkpoint(root, preset, seed=2)
    with pytest.raises(DataError, match=r"another 'image_encoder' than that of .*: train with the checkpoint"):
        train(root=root)
    with pytest.raises(InputError, match=r"stage 'clip' reads images or texts.* frontal, lateral, report, joint"):
        train(manifest, checkpoints["debug"], preset, "clip", "frontal")


def altered(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def read_all(folder: Path) -> None:
    studies = EncodedStudies.open(folder)
    for split in ("train", "val"):
        for name in ("frontal", "report"):
            bank = studies.split(split).prompts(name, None)
            bank.encoded(range(int(bank.rows.ends[-1])))


def swap(folder: Path) -> None:
    first, second = folder / "train-00000.safetensors", folder / "train-00001.safetensors"
    content = second.read_bytes()
    second.write_bytes(first.read_bytes())
    first.write_bytes(content)
    index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    files = index["files"]
    files[first.name], files[second.name] = files[second.name], files[first.name]
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


WRONG: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda f: (f / "train-00001.safetensors").unlink(), r"train-00001\.safetensors is missing \(1 of 10"),
    "truncated": (
        lambda f: (f / "val-00000.safetensors").write_bytes((f / "val-00000.safetensors").read_bytes()[:-9]),
        r"val-00000\.safetensors is truncated",
    ),
    "altered values": (
        lambda f: altered(f / "val-00001.safetensors", (f / "val-00001.safetensors").stat().st_size // 2),
        r"val-00001\.safetensors.*; delete val-00001",
    ),
    "altered header": (lambda f: altered(f / "train-00002.safetensors", 7), r"train-00002.*cannot be read"),
    "altered table": (lambda f: altered(f / "studies-val.safetensors", 400), r"studies-val\.safetensors: was altered"),
    "swapped": (swap, r"train-00000\.safetensors: is shard 'train-00001', not what the index says"),
    "other version": (
        lambda f: (f / "index.json").write_text(
            (f / "index.json").read_text(encoding="utf-8").replace('"version": 1', '"version": 9'), encoding="utf-8"
        ),
        "version 9; expected 'xgem-encoded', 1",
    ),
    "no index": (lambda f: (f / "index.json").unlink(), r"has no index\.json"),
}


@pytest.mark.parametrize("what", WRONG)
def test_shards_that_are_wrong_are_refused_and_made_again(
    what: str,
    folder: Path,
    folders: dict[str, Path],
    manifest: Path,
    presets: dict[str, Preset],
    checkpoints: dict[str, Path],
) -> None:
    spoil, message = WRONG[what]
    spoil(folder)
    with pytest.raises(DataError, match=message):
        read_all(folder)
    if what in ("missing", "truncated", "no index"):
        encode(manifest, presets["debug"], checkpoints["debug"], folder, studies_per_shard=SIZE)
        assert contents(folder) == contents(folders["debug"])


def test_every_byte_of_a_row_is_compared(folder: Path) -> None:
    """Whatever is altered of the values, the rows that it belongs to are refused when they are read."""
    from safetensors import safe_open

    path = folder / "train-00000.safetensors"
    with safe_open(path, "np") as file:
        pooled = file.get_tensor("prompts.report.pooled")
    content = path.read_bytes()
    place = content.find(pooled[1].tobytes())
    assert place > 0
    altered(path, place + 3)
    bank = EncodedStudies.open(folder).split("train").prompts("report", None)
    bank.encoded([0])
    with pytest.raises(DataError, match=r"row 1 of prompts\.report was altered; delete train-00000\.safetensors and"):
        bank.encoded([0, 1])
    with pytest.raises(DataError, match=r"train-00000\.safetensors: was altered, as 1 of 10 files"):
        EncodedStudies.open(folder).check_files()


# ------------------------------------------------------------------------------------------------- the command line


def test_commands(
    xgem: Any, manifest: Path, presets: dict[str, Preset], checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    preset, out = tmp_path / "preset.yaml", tmp_path / "encoded"
    preset.write_text(json.dumps(presets["debug"].model_dump(mode="json")), encoding="utf-8")
    call = ["data", "encode", manifest, "--preset", preset, "--model", checkpoints["debug"], "--out", out]
    call += ["--studies-per-shard", "20", "--json"]
    first = xgem(*call, "--shard", "1/2")
    assert json.loads(first.out) == {"shards": 3, "written now": 2, "missing": 1, "folder": str(out)}
    early = xgem("train", "frontal", "--preset", preset, "--data", manifest, "--out", tmp_path / "a", "--encoded", out)
    assert early.code == 2
    assert "run it (again) to its end" in early.err
    assert json.loads(xgem(*call).out)["missing"] == 0
    assert json.loads(xgem(*call, "--check").out) == {"files": 5, "altered": 0}
    root = Path(shutil.copytree(checkpoints["debug"], tmp_path / "root"))
    train = [
        "train",
        "frontal",
        "--preset",
        preset,
        "--data",
        manifest,
        "--out",
        root,
        "--encoded",
        out,
        "--no-progress",
    ]
    done = xgem(*train)
    assert done.code == 0, done.err
    assert (root / "training" / "frontal" / "finished").exists()
    wrong = xgem("train", "reid", "--data", manifest, "--out", root, "--encoded", out)
    assert wrong.code == 2
    assert "reads images" in wrong.err
