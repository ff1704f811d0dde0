"""The examples of README and CONTRIBUTING work as they stand.

A block is marked by the HTML comment above it. ``<!-- test: run -->`` is executed, with the embedded checkpoint, in a
folder that holds a drawn ``cxr.png``; ``<!-- test: studies -->``, in one that also holds ``real.parquet``, a manifest
of drawn studies. In ``<!-- test: dry-run -->`` (hours long, or about the user's own files) every
``make`` line is expanded by ``make -n``, and every ``xgem`` line, make's included, is parsed by the command line.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import forked

PROJECT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(
    r"(?:<!-- test: (?P<mark>[\w-]+) -->\n)?^```(?P<language>\w+)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a document, and how it is to be tested."""

    place: str
    mark: str | None
    language: str
    code: str

    def lines(self) -> list[list[str]]:
        """The shell's words of each line that is not empty or a comment."""
        words = (shlex.split(line, comments=True) for line in self.code.splitlines())
        return [line for line in words if line]


def blocks_of(*paths: Path) -> list[Block]:
    """Every fenced block of the documents, in order."""
    found = []
    for path in paths:
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            place = f"{path.relative_to(PROJECT)}:{text[: match.start('code')].count(chr(10)) + 1}"
            found.append(Block(place, match["mark"], match["language"], match["code"]))
    return found


def each(blocks: list[Block], mark: str | None = None, language: str | None = None) -> pytest.MarkDecorator:
    """Parametrises a test over the blocks, or over those of a mark and a language."""
    chosen = [block for block in blocks if mark in (None, block.mark) and language in (None, block.language)]
    assert chosen, f"no block is marked {mark} in {language}"
    return pytest.mark.parametrize("block", chosen, ids=[block.place for block in chosen])


BLOCKS = blocks_of(PROJECT / "README.md", PROJECT / "CONTRIBUTING.md")


@each(BLOCKS)
def test_every_example_is_tested(block: Block) -> None:
    assert block.language in {"bash", "python"}
    assert block.mark in {"run", "studies", "dry-run"}


@pytest.fixture
def folder(tmp_path: Path, processes: Path) -> Path:
    """A folder with a drawn ``cxr.png`` (two dark fields on a bright ground), and ``bin`` with xgem and python."""
    if not (PROJECT / "xgem" / "assets" / "openi-256" / "model_index.json").is_file():
        pytest.skip("the embedded checkpoint openi-256 is not in xgem/assets")
    from PIL import Image

    y, x = np.mgrid[-1:1:160j, -1:1:144j]
    fields = sum(np.exp(-((((x - side) / 0.25) ** 2 + (y / 0.55) ** 2) ** 2)) for side in (-0.42, 0.42))
    Image.fromarray(np.asarray(210 - 160 * fields, dtype=np.uint8)).save(tmp_path / "cxr.png")
    (tmp_path / "bin").mkdir()
    for name in ("xgem", "python"):
        forked.client(tmp_path / "bin" / name, processes, name)
    return tmp_path


def execute(command: list[str], folder: Path, timeout: float = 280) -> None:
    """Runs ``command`` in ``folder`` with the checkout importable; its output is shown when it fails."""
    env = {
        **os.environ,
        "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH", "")])),
    }
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]


@each(BLOCKS, "run", "python")
def test_python_example_runs(block: Block, folder: Path) -> None:
    execute(["python", "-c", block.code], folder)


@each(BLOCKS, "run", "bash")
def test_shell_example_runs(block: Block, folder: Path) -> None:
    execute(["bash", "-euo", "pipefail", "-c", block.code], folder)


FINDINGS = (
    ("Large right pleural effusion.", ("Pleural Effusion",)),
    ("Cardiomegaly. No effusion.", ("Cardiomegaly",)),
)
STUDIES = 10  # of each split: five show each finding, the fewest for an AUROC


@pytest.fixture
def studies(folder: Path) -> Path:
    """``folder`` with ``real.parquet``: frontals of two dark fields, laterals of one, with reports and labels."""
    from PIL import Image

    from xgem.data.manifest import Manifest
    from xgem.data.rows import Row

    rng, rows = np.random.default_rng(0), []
    y, x = np.mgrid[-1:1:160j, -1:1:144j]
    for split, number in product(("train", "val"), range(STUDIES)):
        text, labels = FINDINGS[number % 2]
        study: dict[str, Any] = {"study": f"{split}{number}", "subject": f"{split}{number}", "split": split}
        study |= {"source": "openi", "licence": "free", "impression": text, "labels": labels}
        for view, sides in (("frontal", (-0.42, 0.42)), ("lateral", (0.0,))):
            size = rng.uniform(0.5, 0.6)
            dark = sum(np.exp(-((((x - side) / 0.25) ** 2 + (y / size) ** 2) ** 2)) for side in sides)
            pixels = 210 * (np.abs(x) < 0.9) - 150 * dark + rng.normal(0, 5, x.shape)
            file = f"{split}{number}-{view}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / file)
            rows.append(Row(view=view, file=file, **study))
    Manifest(tuple(rows), folder).write(folder / "real.parquet")
    return folder


@each(BLOCKS, "studies", "bash")
def test_evaluation_runs_from_studies_to_numbers(
    block: Block, studies: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands as they stand, with the embedded model and the shipped judges, and no network."""
    monkeypatch.setenv("XGEM_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    execute(["bash", "-euo", "pipefail", "-c", block.code], studies, timeout=900)  # a minute on two idle cores
    # Of one folder, each command takes the frontals alone
    with (studies / "cohort" / "metadata.csv").open(newline="", encoding="utf-8") as stream:
        views = Counter(row["view"] for row in csv.DictReader(stream))
    assert views == {"frontal": STUDIES, "lateral": STUDIES}
    wanted = {
        "fidelity": {("fid", "xgem-classifier"), ("kid", "xgem-classifier"), ("fid", "xgem:openi-256/frontal")},
        "factual": {("auroc_macro", "xgem-classifier")},
        "text": {("bleu_1", ""), ("rouge_l", "")},
        "consistency": {("cosine", "prompt encoders of openi-256")},
        "privacy": {("pixel_distance", ""), ("aligned_distance", ""), ("latent_distance", "xgem-classifier")},
    }
    assert wanted.keys() == {words[2] for words in block.lines() if words[:2] == ["xgem", "eval"]}
    for family, names in wanted.items():
        record = json.loads((studies / family / f"{family}.json").read_text(encoding="utf-8"))
        found = {
            (one["name"], one.get("extractor", "")): one["value"]
            for part in record["families"]
            for one in part["metrics"]
            if one.get("value") and not one.get("of")
        }
        assert names <= found.keys(), family
        for name in names:
            assert found[name]["n"] == STUDIES, name
            assert math.isfinite(found[name]["value"]), name


def make_expands_to(words: list[str], venv: Path) -> list[list[str]]:
    """The ``xgem`` commands that ``make`` would run, as it says itself, in an environment that is not there yet."""
    # What a make that runs this suite hands down is none of the example's business.
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    command = ["make", "-n", *words, f"VENV={venv}"]
    done = subprocess.run(command, cwd=PROJECT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    xgem = f"{venv}/bin/xgem "
    lines = done.stdout.replace("\\\n", " ").splitlines()
    return [shlex.split("xgem " + line[len(xgem) :]) for line in lines if line.startswith(xgem)]


def parse(words: list[str]) -> None:
    """Parses an ``xgem`` command without running it: unknown commands, options and surplus arguments are errors."""
    import typer.main

    from xgem.cli import app

    command: Any = typer.main.get_command(app)
    context = command.context_class(command, info_name="xgem")
    name, rest = "xgem", words[1:]
    while True:
        _, rest, _ = command.make_parser(context).parse_args(list(rest))
        if not hasattr(command, "get_command"):
            break
        name, *rest = rest
        command = command.get_command(context, name)
        assert command is not None, f"{shlex.join(words)}: no command {name!r}"
        context = command.context_class(command, parent=context, info_name=name, **command.context_settings)
    if context.allow_extra_args:  # `xgem submit train`: the options of `xgem train`
        parse(["xgem", name, *rest])
        return
    assert not rest, f"{shlex.join(words)}: takes no {rest}"


def check_long_command(block: Block, tmp_path: Path) -> None:
    """Every ``make`` line of a block expands, and every ``xgem`` line is parsed, down to the preset's name."""
    for words in block.lines():
        assert words[0] in {"make", "xgem"}
        commands = make_expands_to(words[1:], tmp_path / "venv") if words[0] == "make" else [words]
        for command in commands:
            parse(command)
            if "--preset" in command:
                from xgem.configs import preset_names
                from xgem.train.reid import PRESETS

                known = PRESETS if "reid" in command else preset_names()
                assert command[command.index("--preset") + 1] in known


@each(BLOCKS, "dry-run", "bash")
def test_long_command_is_one_that_exists(block: Block, tmp_path: Path) -> None:
    check_long_command(block, tmp_path)


def test_unknown_options_do_not_pass_for_examples() -> None:
    with pytest.raises(Exception, match="No such option"):
        parse(["xgem", "generate", "--no-such-option"])


def demo_commands(folder: Path, *settings: str) -> list[list[str]]:
    """The ``xgem`` commands that ``make demo`` runs, with a stand-in that notes down what the shell gives it."""
    log, stand_in, stamp = folder / "log.jsonl", folder / "xgem", folder / "installed"
    log.unlink(missing_ok=True)
    stand_in.write_text(
        f"#!{sys.executable}\nimport json, sys\nprint(json.dumps(sys.argv), file=open({str(log)!r}, 'a'))\n"
    )
    stand_in.chmod(0o755)
    stamp.touch()
    command = ["make", "demo", f"XGEM={stand_in}", f"INSTALLED={stamp}", f"OUT={folder / 'out'}", *settings]
    env = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "MFLAGS"}}
    subprocess.run(command, cwd=PROJECT, env=env, check=True, capture_output=True, timeout=60)
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def value_of(command: list[str], option: str) -> str:
    return command[command.index(option) + 1]


def test_demo_makes_its_own_frontal_and_takes_the_users(tmp_path: Path) -> None:
    own = demo_commands(tmp_path)
    assert [value_of(command, "--outputs") for command in own] == ["frontal", "lateral,report"]
    assert value_of(own[1], "--frontal").startswith(value_of(own[0], "--out"))
    (users,) = demo_commands(tmp_path, "FRONTAL=my 'image'.dcm")
    assert value_of(users, "--frontal") == "my 'image'.dcm"
    assert value_of(users, "--out") == str(tmp_path / "out")


def test_demo_takes_a_sentence_as_it_is(tmp_path: Path) -> None:
    first, _ = demo_commands(tmp_path, 'SENTENCE=The "heart" is `big`; $$5')  # make's own $$
    assert value_of(first, "--report") == 'The "heart" is `big`; $5'
