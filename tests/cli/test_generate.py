"""``xgem generate`` and ``xgem replay`` on a tiny checkpoint of random weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

QUICK = ("--num-inference-steps", 2, "--seed", 3, "--device", "cpu", "--no-progress")


def test_generate_writes_every_output_and_names_the_files(xgem: Any, model: Path, cxr: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = xgem("generate", "--frontal", cxr, "--outputs", "lateral, report", "--out", out, "--model", model, *QUICK)
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [str(out / "lateral.png"), str(out / "report.txt")]
    assert {path.name for path in out.iterdir()} == {"generation.json", "lateral.png", "report.json", "report.txt"}


def test_json_is_the_record_and_nothing_else(xgem: Any, model: Path, cxr: Path, tmp_path: Path) -> None:
    options = ("--sampler", "ddim", "--guidance-scale", "lateral=2.5", "--num-samples", 2, "--dtype", "bfloat16")
    out = tmp_path / "out"
    ran = xgem(
        "generate", "--frontal", cxr, "--report", "Clear.", "--outputs", "lateral", "--out", out,
        "--model", model, *QUICK, *options, "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    record = json.loads(ran.out)
    assert record == json.loads((out / "generation.json").read_text())
    assert list(record["inputs"]) == ["frontal", "report"]
    assert record["inputs"]["report"]["text"] == "Clear."
    assert (record["sampler"], record["guidance_scale"], record["seed"]) == ("ddim", {"lateral": 2.5}, 3)
    assert (record["num_samples"], record["dtype"], record["device"]) == (2, "bfloat16", "cpu")
    assert len(record["files"]["lateral"]) == 2


def test_without_inputs_something_is_drawn(xgem: Any, model: Path, tmp_path: Path) -> None:
    assert xgem("generate", "--outputs", "report", "--out", tmp_path / "out", "--model", model, *QUICK).code == 0


def test_any_modality_can_be_given_by_name(xgem: Any, model: Path, cxr: Path, tmp_path: Path) -> None:
    for name, option in {"a": ("--frontal", cxr), "b": ("--input", f"frontal={cxr}")}.items():
        ran = xgem("generate", *option, "--outputs", "lateral", "--out", tmp_path / name, "--model", model, *QUICK)
        assert ran.code == 0, ran.err
    assert (tmp_path / "a" / "lateral.png").read_bytes() == (tmp_path / "b" / "lateral.png").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--frontal", "CXR", "--outputs", "frontal"), 2, "is an input and an output"),
        (("--frontal", "CXR", "--outputs", "ct"), 2, "'ct' is not known, expected one of: frontal, lateral, report"),
        (("--input", "ct=x", "--outputs", "lateral"), 2, "'ct' is not known"),
        (("--input", "ct", "--outputs", "lateral"), 2, "expected NAME=VALUE"),
        (("--frontal", "CXR", "--input", "frontal=x", "--outputs", "lateral"), 2, "given twice"),
        (("--frontal", "CXR", "--outputs", " , "), 2, "no outputs"),
        (("--frontal", "none.png", "--outputs", "lateral"), 2, "none.png"),
        (("--report", "  ", "--outputs", "lateral"), 2, "report"),
        (("--frontal", "CXR", "--outputs", "lateral", "--seed", "-1"), 2, "seed is -1"),
        (("--frontal", "CXR", "--outputs", "lateral", "--num-inference-steps", "0"), 2, "num_inference_steps is 0"),
        (("--frontal", "CXR", "--outputs", "lateral", "--num-samples", "0"), 2, "num_samples is 0"),
        (("--frontal", "CXR", "--outputs", "lateral", "--guidance-scale", "nan"), 2, "is nan"),
        (("--frontal", "CXR", "--outputs", "lateral", "--guidance-scale", "lateral=x"), 2, "--guidance-scale is"),
        (("--frontal", "CXR", "--outputs", "lateral", "--sampler", "euler"), 2, "sampler 'euler'"),
        (("--frontal", "CXR", "--outputs", "lateral", "--device", "cuda:99"), 1, "not available here"),
        (("--frontal", "CXR", "--outputs", "lateral", "--dtype", "float16", "--device", "cpu"), 1, "not available"),
        (("--frontal", "CXR", "--outputs", "lateral", "--model", "no-such-model"), 1, "neither a folder nor a hub id"),
    ],
)
def test_bad_requests_end_in_one_line_and_write_nothing(
    xgem: Any, model: Path, cxr: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    given = [str(cxr) if argument == "CXR" else argument for argument in arguments]
    defaults = [] if "--model" in given else ["--model", str(model)]
    ran = xgem("generate", *given, *defaults, "--no-progress", "--out", tmp_path / "out")
    assert ran.code == code
    assert message in ran.err
    assert ran.err.startswith("xgem: error: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["cxr.png"]


def test_a_used_folder_needs_overwrite(xgem: Any, model: Path, tmp_path: Path) -> None:
    command = ("generate", "--outputs", "report", "--out", tmp_path / "out", "--model", model, *QUICK)
    assert xgem(*command).code == 0
    before = (tmp_path / "out" / "report.json").stat().st_mtime_ns
    ran = xgem(*command)
    assert ran.code == 1
    assert "--overwrite" in ran.err
    assert (tmp_path / "out" / "report.json").stat().st_mtime_ns == before
    assert xgem(*command, "--overwrite").code == 0


def test_a_long_report_is_a_warning(xgem: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ran = xgem(
        "generate", "--report", "Heart size is normal. " * 200, "--outputs", "frontal", "--out", out,
        "--model", model, *QUICK, "--json",
    )  # fmt: skip
    assert ran.code == 0
    assert json.loads(ran.out)["inputs"]["report"]["truncated"] is True


def test_annotations_come_as_files(xgem: Any, chexgen_checkpoint: Path, tmp_path: Path) -> None:
    mask = np.zeros((40, 40), np.uint8)
    mask[8:32, 4:16] = 255
    for name, pixels in (("right_lung", mask), ("left_lung", mask[:, ::-1])):
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "boxes.json").write_text(json.dumps([{"label": "mass", "bbox": [0.1, 0.5, 0.3, 0.25]}]))
    drawn = ("--boxes", tmp_path / "boxes.json", "--severity", "12")
    options = ("--outputs", "frontal", "--model", chexgen_checkpoint, *QUICK)
    made = []
    for number, left in enumerate((tmp_path / "left_lung.png", f"left lung={tmp_path / 'left_lung.png'}")):
        masks = ("--mask", tmp_path / "right_lung.png", "--mask", left)
        ran = xgem("generate", *masks, *drawn, "--demographics", "sex:F", *options, "--out", tmp_path / str(number))
        assert ran.code == 0, ran.err
        made.append((tmp_path / str(number) / "frontal.png").read_bytes())
        assert {path.name for path in (tmp_path / str(number)).iterdir()} == {
            "frontal.png", "frontal.mask.png", "frontal.boxes.json", "generation.json"
        }  # fmt: skip
    assert made[0] == made[1]
    ran = xgem(
        "generate", "--mask", tmp_path / "right_lung.png", "--mask", tmp_path / "boxes.json", *options, "--out", "x"
    )
    assert ran.code == 2
    assert "boxes.json: not an image; expected a mask as PNG" in ran.err


def test_replay_makes_the_same_bytes(xgem: Any, model: Path, cxr: Path, tmp_path: Path) -> None:
    out, again = tmp_path / "out", tmp_path / "again"
    options = ("--model", model, *QUICK, "--num-samples", 3)
    assert xgem("generate", "--frontal", cxr, "--outputs", "lateral", "--out", out, *options).code == 0
    file = out / "lateral-001.png"
    ran = xgem("replay", file, "--frontal", cxr, "--out", again, "--model", model, "--no-progress")
    assert ran.code == 0, ran.err
    assert ran.out.splitlines() == [str(again / "lateral-001.png")]
    assert (again / "lateral-001.png").read_bytes() == file.read_bytes()
    assert f"identical to {file}" in ran.err


def test_a_replay_that_differs_ends_with_one(xgem: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert xgem("generate", "--outputs", "report", "--out", out, "--model", model, *QUICK).code == 0
    (out / "report.txt").write_text("Something else.\n")
    ran = xgem("replay", out / "report.txt", "--out", tmp_path / "again", "--model", model, "--no-progress")
    assert ran.code == 1
    assert "differs" in ran.err


def test_a_report_without_its_text_is_not_replayed(xgem: Any, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert xgem("generate", "--outputs", "report", "--out", out, "--model", model, *QUICK).code == 0
    for break_it in (lambda path: path.write_bytes(b"caf\xe9"), lambda path: path.unlink()):
        break_it(out / "report.txt")
        ran = xgem("replay", out / "report.json", "--out", tmp_path / "again", "--model", model, "--no-progress")
        assert (ran.code, ran.err.count("\n")) == (2, 1)
        assert "the report itself, report.txt, cannot be read; put it beside its .json file" in ran.err
        assert not (tmp_path / "again").exists()


LATIN_1 = os.fsdecode(b"caf\xe9")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--report", LATIN_1), 2, "input 'report' is not valid UTF-8 text"),
        (("--report", "clear \ud800 lungs"), 2, "input 'report' is not valid UTF-8 text"),
        (("--report", f"@{LATIN_1}.txt"), 2, "cannot be read (No such file"),
        (("--lateral", f"{LATIN_1}.png"), 2, "input 'lateral' is not valid UTF-8 text"),
        (("--image", f"frontal={LATIN_1}.png"), 2, "image of 'frontal' is not valid UTF-8 text"),
        (("--model", LATIN_1), 1, "is neither a folder nor a hub id"),
        (("--sampler", LATIN_1), 2, "is not known, expected one of"),
        (("--lateral", f"{LATIN_1}-folder"), 2, "input 'lateral' is not valid UTF-8 text"),
    ],
)
def test_names_and_texts_in_other_encodings_are_one_line(
    xgem: Any, model: Path, cxr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...], code: int, message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"{LATIN_1}.png").write_bytes(cxr.read_bytes())
    (tmp_path / f"{LATIN_1}-folder").mkdir()
    (tmp_path / f"{LATIN_1}-folder" / f"{LATIN_1}.png").write_bytes(cxr.read_bytes())
    defaults = [] if "--model" in arguments else ["--model", str(model)]
    ran = xgem("generate", *arguments, "--outputs", "frontal", "--out", "out", *defaults, *QUICK)
    assert (ran.code, message in ran.err, ran.err.count("\n"), ran.out) == (code, True, 1, ""), ran.err


def test_a_folder_of_another_encoding_is_written(model: Path, tmp_path: Path) -> None:
    out = tmp_path / LATIN_1
    command = [sys.executable, "-m", "xgem", "generate", "--outputs", "report", "--model", model, *QUICK, "--out", out]
    done = subprocess.run([os.fsencode(str(part)) for part in command], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout == os.fsencode(f"{out / 'report.txt'}\n")
    assert (out / "report.txt").is_file()


def test_what_cannot_be_replayed(xgem: Any, model: Path, cxr: Path, tmp_path: Path) -> None:
    ran = xgem("replay", cxr, "--out", tmp_path / "again", "--model", model)
    assert ran.code == 2
    assert "contains no xgem metadata" in ran.err
    assert not (tmp_path / "again").exists()


def test_ctrl_c_ends_within_a_step_and_leaves_nothing(debug_checkpoint: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "xgem", "generate", "--outputs", "frontal,lateral", "--out", "out", "--seed", "1"]
    command += ["--model", str(debug_checkpoint), "--num-inference-steps", "50", "--num-samples", "4096"]
    program = f"""
import signal
import sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background may have it ignored
from xgem.pipeline import sampling
begun = sampling.sample_together
def begin(*values, **options):
    print("sampling", flush=True)
    return begun(*values, **options)
sampling.sample_together = begin
from xgem.cli import main
sys.exit(main({command[3:]!r}))
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert running.stdout.readline() == "sampling\n"
        time.sleep(0.5)
        sent = time.monotonic()
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert time.monotonic() - sent < 20  # all of it takes minutes
    assert running.returncode == 130
    assert said.splitlines()[-1] == "xgem: interrupted; nothing was written, and the same command starts again"
    assert list(tmp_path.iterdir()) == []
