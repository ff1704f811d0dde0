"""Files for encoded studies: array_record, mosaicml-streaming, datasets and safetensors compared.

    python benchmarks/streams.py FOLDER [--studies 1000000] [--few 10000] [--reads 100000] [--formats ...]

A study is made up from its number: a latent of 256 numbers, a pooled vector of 64, 1 to 16 tokens of 32, all float16.
Every format writes the same studies, and is read in the order of one shuffled epoch by a process of its own, which says
how long it takes to open, how many samples it reads a second, and its memory by /proc/self/status: the peak (VmHWM),
its own pages (RssAnon) and those of files that it maps (RssFile). Samples are compared with what was written; an epoch
resumed in its middle, and divided among 4 processes, must read what the unbroken one does. Files are deleted after
each format. The libraries are no dependencies of xgem but array_record and safetensors; mosaicml-streaming
cannot be installed beside it (it asks for transformers < 5 and numpy < 2.2) and needs an environment of its own, or
``pip install --no-deps --target``.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

LATENT, POOLED, TOKEN, MOST = 256, 64, 32, 16
SHARD = 20_000
"""Studies a file."""

Study = tuple[NDArray[np.float16], NDArray[np.float16], NDArray[np.float16]]
Read = Callable[[int], Study]


def study(number: int) -> Study:
    """Latent (256,), pooled (64,) and tokens (n, 32) of a study; each of its numbers says which study it is."""
    count = 1 + number * 7 % MOST
    values = np.full(LATENT + POOLED + count * TOKEN, number % 2039, np.float16)
    values[:8] = [number >> (4 * k) & 15 for k in range(8)]
    return values[:LATENT], values[LATENT : LATENT + POOLED], values[LATENT + POOLED :].reshape(-1, TOKEN)


def library(name: str) -> Any:
    """A module that xgem does not depend on."""
    return importlib.import_module(name)


def parts(count: int) -> Iterator[tuple[int, range]]:
    for index, start in enumerate(range(0, count, SHARD)):
        yield index, range(start, min(count, start + SHARD))


# ------------------------------------------------------------------------------------------------------- the formats


def write_arrayrecord(folder: Path, count: int) -> None:
    module = library("array_record.python.array_record_module")
    for index, numbers in parts(count):
        writer = module.ArrayRecordWriter(str(folder / f"{index:05}.array_record"), "group_size:1,uncompressed")
        for number in numbers:
            writer.write(b"".join(part.tobytes() for part in study(number)))
        writer.close()


def open_arrayrecord(folder: Path) -> Read:
    module = library("array_record.python.array_record_module")
    options = "readahead_buffer_size:0,max_parallelism:0"
    readers = [module.ArrayRecordReader(str(path), options) for path in sorted(folder.iterdir())]

    def read(number: int) -> Study:
        (record,) = readers[number // SHARD].read([number % SHARD])
        values = np.frombuffer(record, np.float16)
        return values[:LATENT], values[LATENT : LATENT + POOLED], values[LATENT + POOLED :].reshape(-1, TOKEN)

    return read


def write_mds(folder: Path, count: int) -> None:
    columns = {"latent": "ndarray:float16", "pooled": "ndarray:float16", "tokens": "ndarray:float16"}
    with library("streaming.base").MDSWriter(out=str(folder), columns=columns, hashes=["xxh64"]) as writer:
        for number in range(count):
            writer.write(dict(zip(columns, study(number), strict=True)))


def open_mds(folder: Path) -> Read:
    samples = library("streaming.base").LocalDataset(local=str(folder))

    def read(number: int) -> Study:
        sample = samples[number]
        return sample["latent"], sample["pooled"], sample["tokens"]

    return read


def write_datasets(folder: Path, count: int) -> None:
    datasets, arrow_writer = library("datasets"), library("datasets.arrow_writer")
    vector = datasets.List(datasets.Value("float16"))
    tokens = datasets.Array2D((None, TOKEN), "float16")
    features = datasets.Features(latent=vector, pooled=vector, tokens=tokens)
    for index, numbers in parts(count):
        path = str(folder / f"{index:05}.arrow")
        with arrow_writer.ArrowWriter(features=features, path=path, writer_batch_size=100) as writer:
            for number in numbers:
                writer.write(dict(zip(features, study(number), strict=True)))
            writer.finalize()


def open_datasets(folder: Path) -> Read:
    datasets = library("datasets")
    files = [datasets.Dataset.from_file(str(path)) for path in sorted(folder.iterdir())]
    rows = datasets.concatenate_datasets(files).with_format("numpy")

    def read(number: int) -> Study:
        row = rows[number]
        return row["latent"], row["pooled"], row["tokens"]

    return read


def write_safetensors(folder: Path, count: int) -> None:
    from safetensors.numpy import save_file

    for index, numbers in parts(count):
        latents, pooled, tokens = zip(*map(study, numbers), strict=True)
        ends = np.cumsum([0, *map(len, tokens)])
        arrays = {"latent": np.stack(latents), "pooled": np.stack(pooled), "tokens": np.concatenate(tokens)}
        save_file(arrays | {"ends": ends}, folder / f"{index:05}.safetensors")


def open_safetensors(folder: Path) -> Read:
    from safetensors import safe_open

    paths = sorted(folder.iterdir())

    def read(number: int) -> Study:
        row = number % SHARD
        with safe_open(paths[number // SHARD], "np") as file:  # closed again: a mapped file counts as memory
            first, last = file.get_slice("ends")[row : row + 2].tolist()
            latent, pooled = (file.get_slice(name)[row : row + 1][0] for name in ("latent", "pooled"))
            return latent, pooled, file.get_slice("tokens")[first:last]

    return read


FORMATS: dict[str, tuple[Callable[[Path, int], None], Callable[[Path], Read]]] = {
    "array_record": (write_arrayrecord, open_arrayrecord),
    "mosaicml-streaming": (write_mds, open_mds),
    "datasets": (write_datasets, open_datasets),
    "safetensors": (write_safetensors, open_safetensors),
}


# ---------------------------------------------------------------------------------------------------- the measurement


def memory() -> dict[str, int]:
    """Peak and current memory of this process in MB."""
    lines = dict(line.split(":") for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines())
    return {name: int(lines[name].split()[0]) // 1024 for name in ("VmHWM", "RssAnon", "RssFile")}


def read_epoch(name: str, folder: Path, count: int, reads: int) -> dict[str, Any]:
    """Open what was written and read ``reads`` samples of a shuffled epoch."""
    start = time.perf_counter()
    read = FORMATS[name][1](folder)
    read(0)
    opened = time.perf_counter() - start
    order = np.random.default_rng(0).permutation(count)[:reads]
    start = time.perf_counter()
    for number in order:
        read(int(number))
    took = time.perf_counter() - start
    measured = {"open_s": round(opened, 2), "samples_per_s": round(len(order) / took), **memory()}
    for number in order[:1000]:
        for found, expected in zip(read(int(number)), study(int(number)), strict=True):
            np.testing.assert_array_equal(found, expected)

    def digest(numbers: Sequence[int] | NDArray[np.int64]) -> list[bytes]:
        return [hashlib.sha256(b"".join(part.tobytes() for part in read(int(one)))).digest() for one in numbers]

    part = order[:400]
    unbroken = digest(part)
    read = FORMATS[name][1](folder)  # as a process does that resumes
    assert digest(part[100:]) == unbroken[100:]
    shares = [digest(part[process::4]) for process in range(4)]
    assert [shares[k % 4][k // 4] for k in range(len(part))] == unbroken
    return measured


def measure(name: str, folder: Path, count: int, reads: int) -> dict[str, Any]:
    """Write and read in processes of their own; the files are deleted."""
    folder.mkdir(parents=True)
    call = [sys.executable, __file__, str(folder), "--formats", name, "--studies", str(count), "--reads", str(reads)]
    try:
        start = time.perf_counter()
        subprocess.run([*call, "--only", "write"], check=True)
        found = {"studies": count, "write_s": round(time.perf_counter() - start, 1)}
        found["disk_mb"] = sum(path.stat().st_size for path in folder.iterdir()) // 2**20
        said = subprocess.run([*call, "--only", "read"], check=True, stdout=subprocess.PIPE, text=True).stdout
        return found | json.loads(said)
    finally:
        shutil.rmtree(folder)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder for the files")
    parser.add_argument("--studies", type=int, default=1_000_000)
    parser.add_argument("--few", type=int, default=10_000, help="the number of studies to compare memory with")
    parser.add_argument("--reads", type=int, default=100_000, help="samples to read, of one epoch at most")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--only", choices=["write", "read"], help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.only == "write":
        FORMATS[given.formats[0]][0](given.folder, given.studies)
    elif given.only == "read":
        print(json.dumps(read_epoch(given.formats[0], given.folder, given.studies, given.reads)))
    else:
        for name in given.formats:
            for count in (given.few, given.studies):
                found = measure(name, given.folder / f"{name}-{os.getpid()}", count, given.reads)
                print(json.dumps({"format": name} | found), flush=True)


if __name__ == "__main__":
    main()
