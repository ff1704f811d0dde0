"""The cache gives what was made, never what was made from something else, and heals what is damaged."""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from xgem.configs.components import TransformConfig
from xgem.configs.reading import ReadOptions
from xgem.data.cache import ArrayCache
from xgem.data.manifest import Manifest, Row
from xgem.data.prepare import PreparedImages, _sha256, prepare_images
from xgem.data.stored_pixels import StoredPixels
from xgem.data.transforms import read_square
from xgem.types import DataError, ImageError, OutputError
from xgem.utils.hashing import arrays_hash, canonical, content_hash, module_hash


class Maker:
    """Counts how often it is asked."""

    def __init__(self, value: float = 1.0) -> None:
        self.calls, self.value = 0, value

    def __call__(self) -> dict[str, np.ndarray | torch.Tensor]:
        self.calls += 1
        return {
            "a": np.full((10, 7), self.value, np.float32),
            "b": torch.arange(24, dtype=torch.uint8).reshape(6, 4),
            "c": torch.tensor(self.value, dtype=torch.bfloat16),
            "d": torch.zeros(0, 3),
        }


def same(left: dict[str, torch.Tensor], right: dict) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        torch.testing.assert_close(value, torch.as_tensor(right[name]), rtol=0, atol=0)


def test_made_once_and_given_again(tmp_path: Path):
    make, cache = Maker(), ArrayCache(tmp_path)
    first = cache.get_or_make("latents", {"data": "x", "size": 3}, make)
    second = cache.get_or_make("latents", {"size": 3, "data": "x"}, make)
    assert make.calls == 1
    same(first, Maker()())
    same(second, Maker()())
    assert [path.suffix for path in (tmp_path / "latents").iterdir()] == [".safetensors"]


def test_entries_of_earlier_versions(tmp_path: Path):
    """One file with its number of shards is read; several are replaced by one."""
    make, cache, key = Maker(), ArrayCache(tmp_path), {"x": 1}
    arrays = {name: torch.as_tensor(value) for name, value in Maker(3)().items()}
    text = canonical(key)
    file = tmp_path / "k" / f"{hashlib.sha256(text.encode()).hexdigest()}.safetensors"
    file.parent.mkdir()
    names = json.dumps(dict.fromkeys(arrays, 0))
    meta = {"key": text, "arrays": names, "digest": arrays_hash(arrays), "shards": "1", "writing": "0"}
    save_file(arrays, file, metadata=meta)
    same(cache.get_or_make("k", key, make), Maker(3)())
    assert make.calls == 0
    shards = [file.with_name(f"{file.stem}-{i:05d}-of-00002.safetensors") for i in (1, 2)]
    for shard in shards:
        file.rename(shard) if file.exists() else shard.write_bytes(shards[0].read_bytes())
    same(cache.get_or_make("k", key, make), Maker()())
    assert make.calls == 1
    assert list(file.parent.iterdir()) == [file]


def test_unfinished_work_goes_once_the_entry_is_stored(tmp_path: Path):
    cache, key = ArrayCache(tmp_path), {"x": 1}
    folder = cache.unfinished("k", key)
    assert folder != cache.unfinished("k", {"x": 2})

    def make() -> dict[str, np.ndarray]:
        folder.mkdir(parents=True)
        (folder / "state").touch()
        return {"a": np.zeros(2)}

    cache.get_or_make("k", key, make)
    assert not folder.exists()
    same(cache.get_or_make("k", key, Maker()), {"a": np.zeros(2)})


@pytest.mark.parametrize("other", [{"data": "y", "size": 3}, {"data": "x", "size": 4}, {"data": "x"}])
def test_another_key_is_never_answered_from_the_store(tmp_path: Path, other: dict):
    cache = ArrayCache(tmp_path)
    cache.get_or_make("k", {"data": "x", "size": 3}, Maker(1))
    make = Maker(2)
    same(cache.get_or_make("k", other, make), Maker(2)())
    assert make.calls == 1


def test_a_file_with_another_key_is_not_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    cache = ArrayCache(tmp_path)
    cache.get_or_make("k", {"x": 1}, Maker(1))
    (old,) = (tmp_path / "k").iterdir()
    cache.get_or_make("k", {"x": 2}, Maker(2))
    (new,) = set((tmp_path / "k").iterdir()) - {old}
    new.write_bytes(old.read_bytes())
    same(cache.get_or_make("k", {"x": 2}, Maker(2)), Maker(2)())
    assert "another" in caplog.text


@pytest.mark.parametrize("damage", ["truncate", "empty", "flip", "noise", "lose"])
def test_damaged_files_are_made_again_with_a_warning(tmp_path: Path, damage: str, caplog):
    cache = ArrayCache(tmp_path)
    cache.get_or_make("k", {"x": 1}, Maker())
    path = sorted((tmp_path / "k").iterdir())[-1]
    data = path.read_bytes()
    if damage == "lose":
        path.unlink()
    else:
        changed = {
            "truncate": data[:-3],
            "empty": b"",
            "flip": data[:-1] + bytes([data[-1] ^ 0x10]),
            "noise": b"noise" * 20,
        }
        path.write_bytes(changed[damage])
    make = Maker()
    with caplog.at_level(logging.WARNING):
        same(cache.get_or_make("k", {"x": 1}, make), Maker()())
    assert make.calls == 1
    assert ("computing it again" in caplog.text) == (damage != "lose")
    same(cache.get_or_make("k", {"x": 1}, make), Maker()())
    assert make.calls == 1


def test_nothing_half_made_is_left(tmp_path: Path):
    def fail() -> dict[str, np.ndarray]:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        ArrayCache(tmp_path).get_or_make("k", {}, fail)
    assert not list(tmp_path.rglob("*.*"))


def test_of_several_that_want_an_entry_one_makes_it(tmp_path: Path):
    """Stages that train side by side read the same images."""
    make = Maker()
    started = threading.Barrier(3)

    def slow() -> Any:
        time.sleep(0.3)
        return make()

    def wanted(_: int) -> dict[str, torch.Tensor]:
        started.wait()
        return ArrayCache(tmp_path).get_or_make("k", {"x": 1}, slow)

    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(wanted, range(3)))
    assert make.calls == 1
    for result in results:
        same(result, Maker()())
    assert [path.suffix for path in (tmp_path / "k").iterdir()] == [".safetensors"]


def test_bad_keys_names_and_places(tmp_path: Path):
    cache = ArrayCache(tmp_path)
    for key in ({"x": object()}, {"x": float("nan")}):
        with pytest.raises(DataError, match="JSON"):
            cache.get_or_make("k", key, Maker())
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written"):
        ArrayCache(tmp_path / "file").get_or_make("k", {}, Maker())


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.lists(st.booleans())))
def test_canonical_keys_do_not_depend_on_order(key: dict):
    assert canonical(key) == canonical(dict(reversed(key.items())))


def test_hashes(tmp_path: Path):
    one, two = tmp_path / "1", tmp_path / "2"
    one.write_bytes(b"1")
    two.write_bytes(b"2")
    assert content_hash([one, two]) != content_hash([two, one])
    (tmp_path / "other").write_bytes(b"1")
    assert content_hash([one]) == content_hash([str(tmp_path / "other")])
    with pytest.raises(DataError, match="cannot be read"):
        content_hash([tmp_path / "none"])
    net = torch.nn.Linear(3, 2)
    before = module_hash(net)
    assert before == module_hash(net)
    with torch.no_grad():
        net.bias[0] += 1e-6
    assert module_hash(net) != before


def make_manifest(folder: Path, chest, n: int = 5) -> Manifest:
    rows = []
    for i in range(n):
        for view in ("frontal", "lateral")[: 1 + i % 2]:
            Image.fromarray(chest(60 + i, 50)).save(folder / f"{i}{view}.png")
            rows.append(Row(study=f"s{i}", subject=f"p{i}", split="train", view=view, file=f"{i}{view}.png"))
    rows.append(Row(study="t", subject="t", split="train", impression="Normal."))
    return Manifest(tuple(rows), folder)


def test_prepared_images(tmp_path: Path, chest):
    config = TransformConfig(size=32)
    manifest = make_manifest(tmp_path, chest)
    made = prepare_images(manifest, "train", config, tmp_path / "cache", progress=False)
    again = prepare_images(manifest, "train", config, tmp_path / "cache", progress=False)
    assert isinstance(made, PreparedImages)
    assert made.values.shape == (7, 32, 32)
    assert made.values.dtype == torch.uint8
    torch.testing.assert_close(made.values[:], again.values[:])
    assert len(list((tmp_path / "cache/images").iterdir())) == 1
    rows = {
        (study.id, view): made.rows(number, study, view)
        for number, study in enumerate(manifest.studies("train"))
        for view in ("frontal", "lateral")
    }
    assert rows["t", "frontal"] == rows["s0", "lateral"] == []
    assert sorted(row for own in rows.values() for row in own) == list(range(7))
    for (study, view), own in rows.items():
        for row in own:
            expected = read_square(tmp_path / f"{study[1:]}{view}.png", config)
            found = made.floats([row])[0, 0].numpy()
            np.testing.assert_allclose(found, expected, atol=0.5 / 127.5 + 1e-5)


def test_changed_images_and_configs_are_prepared_again(tmp_path: Path, chest):
    manifest = make_manifest(tmp_path, chest)
    config = TransformConfig(size=32)
    first = prepare_images(manifest, "train", config, tmp_path / "cache", progress=False)
    Image.fromarray(255 - chest(60, 50)).save(tmp_path / "0frontal.png")
    second = prepare_images(manifest, "train", config, tmp_path / "cache", progress=False)
    assert first.sha256 != second.sha256
    assert not torch.equal(first.values[0], second.values[0])
    third = prepare_images(manifest, "train", TransformConfig(size=32, pad=False), tmp_path / "cache", progress=False)
    assert not torch.equal(second.values[:], third.values[:])


def test_images_are_identified_as_by_the_whole_key():
    """The hash is the one of the key with the list of readings in it, as it was when the list was held in memory."""
    key = {"content": "c", "transform": {"size": 32}, "version": 2}
    readings = [ReadOptions(), ReadOptions(invert=True), ReadOptions(pixel_aspect=1.5)]
    whole = key | {"reading": [one.model_dump() for one in readings]}
    assert _sha256(key, iter(readings)) == hashlib.sha256(canonical(whole).encode()).hexdigest()
    assert _sha256(key, None) == hashlib.sha256(canonical(key).encode()).hexdigest()


def test_unreadable_images_are_named(tmp_path: Path, chest):
    manifest = make_manifest(tmp_path, chest)
    (tmp_path / "1lateral.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1lateral\.png"):
        prepare_images(manifest, "train", TransformConfig(size=32), tmp_path / "cache", progress=False)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))
    (tmp_path / "1lateral.png").unlink()
    with pytest.raises(DataError, match=r"1lateral\.png"):
        prepare_images(manifest, "train", TransformConfig(size=32), tmp_path / "cache", progress=False)
    with pytest.raises(DataError, match="no images"):
        prepare_images(manifest, "val", TransformConfig(size=32), tmp_path / "cache", progress=False)


def test_prepared_images_are_read_from_parts(tmp_path: Path, chest, monkeypatch):
    """Files of a few images each: the same pixels, made one by one, and refused where they were altered."""
    config = TransformConfig(size=32)
    manifest = make_manifest(tmp_path, chest)
    whole = prepare_images(manifest, "train", config, tmp_path / "whole", progress=False)
    monkeypatch.setattr("xgem.data.prepare.PART", 3)
    made = prepare_images(manifest, "train", config, tmp_path / "parts", progress=False)
    assert isinstance(made.values, StoredPixels)
    assert made.sha256 == whole.sha256
    assert len(made.values.files) == len(list((tmp_path / "parts/images").iterdir())) == 3
    for rows in ([6, 0, 3, 3], torch.tensor([5, 2]), []):
        torch.testing.assert_close(made.bytes(rows), whole.bytes(rows))
    torch.testing.assert_close(made.values[:], whole.values[:])
    torch.testing.assert_close(made.values[-1], whole.values[6])
    with pytest.raises(IndexError):
        made.values[7]

    made.values.files[1].unlink()  # what a killed run has not written yet is made, and nothing else
    kept = {file: file.stat().st_mtime_ns for file in made.values.files if file.exists()}
    again = prepare_images(manifest, "train", config, tmp_path / "parts", progress=False)
    torch.testing.assert_close(again.values[:], whole.values[:])
    assert {file: file.stat().st_mtime_ns for file in kept} == kept

    file = made.values.files[0]
    content = bytearray(file.read_bytes())
    place = content.find(whole.values[1].numpy().tobytes())
    content[place + 5] ^= 1
    file.write_bytes(content)
    assert torch.equal(made.values[0], whole.values[0])
    with pytest.raises(DataError, match=r"image 1 was altered; delete the file"):
        made.bytes([0, 1])
    file.write_bytes(content[:100])
    with pytest.raises(DataError, match="cannot be read"):
        made.bytes([0])
    repaired = prepare_images(manifest, "train", config, tmp_path / "parts", progress=False)
    torch.testing.assert_close(repaired.values[:], whole.values[:])


_READ_ALL = """
import sys
from pathlib import Path
import torch
from xgem.data.stored_pixels import StoredPixels

def memory():
    status = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(status[name].split()[0]) / 1024 for name in ("VmHWM", "VmRSS")}

files = sorted(Path(sys.argv[1]).iterdir())
pixels = StoredPixels(files, 2048, 256, 512)
pixels[:16]
before = memory()["VmHWM"]
for rows in torch.randperm(2048, generator=torch.Generator().manual_seed(0)).split(16):
    pixels[rows]
print(memory()["VmHWM"] - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
def test_reading_images_keeps_none_in_memory(tmp_path: Path):
    rng = np.random.default_rng(0)
    for part in range(4):
        values = rng.integers(0, 256, (512, 256, 256), dtype=np.uint8)
        sums = np.array([zlib.crc32(one.tobytes()) for one in values])
        save_file({"values": torch.from_numpy(values), "crc": torch.from_numpy(sums)}, tmp_path / f"{part}.safetensors")
    run = subprocess.run([sys.executable, "-c", _READ_ALL, tmp_path], check=True, stdout=subprocess.PIPE, text=True)
    assert float(run.stdout) < 12  # of 128 MB
