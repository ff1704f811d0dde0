from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from xgem.configs.reading import ReadOptions
from xgem.data.set_files import read_set
from xgem.data.sets import EvalSet, Item
from xgem.eval.features import extract
from xgem.judges.extractors import Extractor, Images
from xgem.types import DataError, ImageError, InputError, OutputError, ShapeError

SIDE = 36


class Counted:
    """Mean and spread of an image, counting what was looked at."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def __call__(self, images: Images) -> NDArray[np.float64]:
        self.seen.append(images.shape)
        flat = images.reshape(len(images), -1).astype(np.float64)
        return np.stack([flat.mean(axis=1), flat.std(axis=1), flat[:, 0]], axis=1)

    @property
    def count(self) -> int:
        return sum(shape[0] for shape in self.seen)


def space(counted: Counted, **changes: object) -> Extractor:
    return replace(Extractor("two moments", "w1", 3, 8, "none", counted), **changes)


def images(folder: Path, n: int, *, first: int = 0, side: int = SIDE) -> EvalSet:
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(n):
        rng = np.random.default_rng(first + i)
        Image.fromarray(rng.integers(0, 256, (side, side), dtype=np.uint8)).save(folder / f"{i:03d}.png")
    return read_set(folder)


def expected(items: EvalSet) -> NDArray[np.float32]:
    flat = items.images().reshape(len(items), -1).astype(np.float64)
    return np.stack([flat.mean(axis=1), flat.std(axis=1), flat[:, 0]], axis=1).astype(np.float32)


@pytest.mark.parametrize("cached", [True, False])
def test_features_in_order(tmp_path: Path, cached: bool) -> None:
    items = images(tmp_path / "set", 23)
    found = extract(items, space(Counted()), tmp_path / "cache" if cached else None, batch_size=5)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected(items))


def test_what_is_known_is_not_computed_again(tmp_path: Path) -> None:
    first = images(tmp_path / "a", 10)
    second = images(tmp_path / "b", 14, first=4)  # six of them are images of the first set
    counted = Counted()
    extract(first, space(counted), tmp_path / "cache", batch_size=4)
    assert counted.count == 10
    found = extract(second, space(counted), tmp_path / "cache", batch_size=4)
    assert counted.count == 18
    np.testing.assert_array_equal(found, expected(second))
    extract(first.subset([9, 0, 9]), space(counted), tmp_path / "cache")
    assert counted.count == 18


def test_a_image_twice_in_a_set_is_computed_once(tmp_path: Path) -> None:
    items = images(tmp_path / "set", 3)
    twice = EvalSet("twice", (*items.items, *(replace(one, id=one.id + "again") for one in items.items)))
    counted = Counted()
    np.testing.assert_array_equal(extract(twice, space(counted), tmp_path / "c"), np.tile(expected(items), (2, 1)))
    assert counted.count == 3


@pytest.mark.parametrize("change", [{"weights": "w2"}, {"name": "other"}, {"preprocessing": "crop"}])
def test_another_network_or_preprocessing_has_its_own_features(tmp_path: Path, change: dict[str, str]) -> None:
    items, counted = images(tmp_path / "set", 4), Counted()
    extract(items, space(counted), tmp_path / "cache")
    extract(items, space(counted, **change), tmp_path / "cache")
    assert counted.count == 8


def test_images_of_several_sizes(tmp_path: Path) -> None:
    images(tmp_path / "set", 2)
    items = read_set(tmp_path / "set")
    Image.fromarray(np.arange(2400, dtype=np.uint8).reshape(60, 40) | 64).save(tmp_path / "set" / "tall.png")
    mixed, counted = read_set(tmp_path / "set"), Counted()
    with pytest.raises(DataError, match="mixed sizes"):
        extract(mixed, space(counted))
    own = extract(items, space(counted), tmp_path / "cache")
    counted.seen.clear()
    padded = extract(replace(mixed, pad=True), space(counted), tmp_path / "cache")
    assert counted.seen == [(3, 8, 8)]  # padded and resized images are not those of the set as it is
    assert not np.array_equal(padded[:2], own)
    assert padded[2, 2] == 0  # the tall image's corner is padding


def test_a_killed_run_keeps_what_it_did(tmp_path: Path) -> None:
    items = images(tmp_path / "set", 30)
    script = f"""
import os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_features import Counted, space
from xgem.eval.features import extract
from xgem.configs.reading import ReadOptions
from xgem.data.set_files import read_set

class Deadly(Counted):
    def __call__(self, images):
        if self.count == 15:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(images)

from pathlib import Path
extract(read_set({str(tmp_path / "set")!r}), space(Deadly()), Path({str(tmp_path / "cache")!r}), batch_size=5)
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    died = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    assert died.returncode == -signal.SIGKILL, died.stderr
    counted = Counted()
    found = extract(items, space(counted), tmp_path / "cache", batch_size=5)
    assert counted.count == 15
    np.testing.assert_array_equal(found, expected(items))


def test_several_processes_share_a_cache(tmp_path: Path) -> None:
    items = images(tmp_path / "set", 40)
    script = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_features import Counted, expected, space
from xgem.eval.features import extract
from xgem.configs.reading import ReadOptions
from xgem.data.set_files import read_set
items = read_set({str(tmp_path / "set")!r})
assert (extract(items, space(Counted()), Path({str(tmp_path / "cache")!r}), batch_size=1) == expected(items)).all()
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    running = [
        subprocess.Popen([sys.executable, "-c", script], env=environment, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for one in running:
        assert one.wait() == 0, one.stderr.read() if one.stderr else ""
        if one.stderr:
            one.stderr.close()
    counted = Counted()
    extract(items, space(counted), tmp_path / "cache")
    assert counted.count == 0


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    items = images(tmp_path / "set", 60, side=200)
    tracemalloc.start()
    extract(items, space(Counted()), tmp_path / "cache", batch_size=4)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 60 * 200 * 200 * 2  # all images as read (float32) take twice that


def test_what_cannot_be_used(tmp_path: Path) -> None:
    items = images(tmp_path / "set", 3)
    with pytest.raises(InputError, match="no images"):
        extract(EvalSet("texts", (Item("a", report="Clear."),)), space(Counted()))
    with pytest.raises(DataError, match=r"001\.png.*not finite"):
        extract(items, space(Counted(), encode=_spoiled), tmp_path / "cache")
    with pytest.raises(ShapeError, match="expected"):
        extract(items, replace(space(Counted()), dim=4))
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="another folder"):
        extract(items, space(Counted()), tmp_path / "file")
    (tmp_path / "set" / "001.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"001\.png"):
        extract(items, space(Counted()), tmp_path / "cache")


def _spoiled(x: Images) -> NDArray[np.float64]:
    features = np.zeros((len(x), 3))
    features[1, 2] = np.nan
    return features


def test_a_damaged_cache_is_named(tmp_path: Path) -> None:
    items = images(tmp_path / "set", 3)
    extract(items, space(Counted()), tmp_path / "cache")
    (file,) = (tmp_path / "cache").rglob("*.sqlite")
    with sqlite3.connect(file) as store:  # a vector cut short is made again
        store.execute("UPDATE features SET vector = x'00'")
    store.close()
    counted = Counted()
    np.testing.assert_array_equal(extract(items, space(counted), tmp_path / "cache"), expected(items))
    assert counted.count == 3
    file.write_bytes(b"something else" * 100)
    with pytest.raises(DataError, match="delete the file"):
        extract(items, space(Counted()), tmp_path / "cache")


def test_an_image_read_in_another_way_has_features_of_its_own(tmp_path: Path) -> None:
    plain, counted = images(tmp_path / "set", 2), Counted()
    turned = read_set(tmp_path / "set", reading=ReadOptions(invert=True))
    known = extract(plain, space(counted), tmp_path / "cache")
    other = extract(turned, space(counted), tmp_path / "cache")
    np.testing.assert_allclose(known[:, 0] + other[:, 0], 255, atol=1)
    assert counted.count == 4
    np.testing.assert_array_equal(extract(turned, space(counted), tmp_path / "cache"), other)
    assert counted.count == 4
