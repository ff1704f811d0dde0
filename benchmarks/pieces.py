"""A checkpoint in few files of limited size, to send it over a narrow way, and the checkpoint made of them again.

    python benchmarks/pieces.py split runs/gpu pieces        # part-00, part-01, ..., and SHA256SUMS
    python benchmarks/pieces.py join pieces runs/gpu

What is sent are the components of finished stages as float16, the settings of the run, and each stage's log and mark of
being finished: a run that is joined elsewhere goes on with the stages that are not. Their unfinished weights and the
optimizers' states stay behind, as they take sixteen bytes a parameter: such a stage starts again.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import torch

from xgem.checkpoints.store import copy_checkpoint
from xgem.utils.files import new_folder

SUMS: Final = "SHA256SUMS"
SIZE: Final = 15 * 2**20
WHOLE: Final = "whole"
"""The name of all pieces together among the sums."""
KEPT: Final = ("preset.yaml", "training/*/finished", "training/*/log.jsonl")


def split(run: Path, out: Path, *, size: int = SIZE, most: int = 8, dtype: torch.dtype = torch.float16) -> list[Path]:
    """Write a run's checkpoint as pieces of at most ``size`` bytes; SystemExit where that gives over ``most`` files."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "checkpoint"
        copy_checkpoint(run, folder, dtype=dtype)
        for file in (file for pattern in KEPT for file in run.glob(pattern)):
            (folder / file.relative_to(run)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, folder / file.relative_to(run))
        data = archive(folder)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    if len(parts) + 1 > most:
        raise SystemExit(f"{len(data) / 1e6:.1f} MB are {len(parts)} pieces and their sums: more than {most} files")
    names = [f"part-{number:02d}" for number in range(len(parts))]
    sums = [(hashlib.sha256(part).hexdigest(), name) for name, part in zip(names, parts, strict=True)]
    sums.append((hashlib.sha256(data).hexdigest(), WHOLE))
    with new_folder(out) as made:
        for name, part in zip(names, parts, strict=True):
            (made / name).write_bytes(part)
        (made / SUMS).write_text("".join(f"{digest}  {name}\n" for digest, name in sums))
    return [out / name for name in (*names, SUMS)]


def archive(folder: Path) -> bytes:
    """The files of a folder as a tar, the same bytes for the same files."""

    def plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
        entry.uid = entry.gid = entry.mtime = 0
        entry.uname = entry.gname = ""
        return entry

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            tar.add(file, str(file.relative_to(folder)), filter=plain)
    return stream.getvalue()


def join(pieces: Path, out: Path) -> Path:
    """The checkpoint folder ``out`` (new or empty) of the pieces; SystemExit where one is missing or not as it was."""
    try:
        lines = (pieces / SUMS).read_text().splitlines()
        sums = {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
        parts = {name: (pieces / name).read_bytes() for name in sums if name != WHOLE}
    except (OSError, ValueError) as error:
        raise SystemExit(f"{pieces}: not all pieces are there ({error}); fetch them again") from None
    data = b"".join(parts[name] for name in sorted(parts))
    for name, part in {**parts, WHOLE: data}.items():
        if hashlib.sha256(part).hexdigest() != sums.get(name):
            raise SystemExit(f"{pieces / name}: its SHA-256 is not that of {SUMS}; fetch it again")
    with new_folder(out) as folder, tarfile.open(fileobj=io.BytesIO(data)) as tar:
        tar.extractall(folder, filter="data")
    return out


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("split", "join"))
    parser.add_argument("source", type=Path, help="folder of the run, or of the pieces")
    parser.add_argument("out", type=Path, help="folder to write, new or empty")
    parser.add_argument("--megabytes", type=float, default=SIZE / 2**20, help="of a piece at most, of 2^20 bytes")
    parser.add_argument("--most", type=int, default=8, help="number of files, with the sums")
    arguments = parser.parse_args(words)
    if arguments.what == "join":
        print(join(arguments.source, arguments.out))
        return 0
    for file in split(arguments.source, arguments.out, size=int(arguments.megabytes * 2**20), most=arguments.most):
        print(f"{file.stat().st_size:>10} {file}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
