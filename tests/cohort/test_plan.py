"""Plans that cannot be followed say why, in one line, before anything is made."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xgem.cohort.items import expand
from xgem.cohort.plan import SENTENCES, read_plan, sentences
from xgem.labels.rules import label_report
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.pipeline.options import RENAMED
from xgem.types import InputError
from xgem.utils.shards import Shard, environment_shard, parse_shard

EDEMA = {"findings": ["Edema"], "count": 2}


@pytest.mark.parametrize("label", CHEXPERT_CLASSES)
def test_sentences_ask_for_their_own_class_alone(label: str) -> None:
    for text in SENTENCES[label]:
        found = {name for name, value in label_report(text).items() if value is not None}
        assert found - ({"No Finding"} if label == "Support Devices" else set()) == {label}, text


def test_sentences_of_several_classes_name_each() -> None:
    for text in sentences(["Cardiomegaly", "Pleural Effusion"]):
        assert {name for name, value in label_report(text).items() if value} == {"Cardiomegaly", "Pleural Effusion"}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"balanced": {"findings": ["Edemas"], "count": 1}}, "balanced.findings.0.labels: unknown finding 'Edemas'"),
        ({"balanced": {"findings": ["No Finding", ["Edema", "No Finding"]], "count": 1}}, "can be combined with"),
        ({"balanced": {"findings": ["Edema", "Edema"], "count": 1}}, "duplicate 'Edema'"),
        ({"balanced": {"findings": [{"name": "x"}], "count": 1}}, "needs labels or texts"),
        ({"balanced": {"findings": [{"name": "x", "texts": [" . "]}], "count": 1}}, "a text is empty"),
        ({"balanced": {"sexes": ["X"], "count": 1}}, "balanced.sexes.0"),
        ({"balanced": {"ages": [[40, 20]], "count": 1}}, "ages 40 to 20"),
        ({"balanced": {"count": 0}}, "balanced.count"),
        ({"balanced": {"views": ["frontal", "lateral"], "count": 1}}, "expected the same views"),
        ({"balanced": {"views": ["ap"], "count": 1}}, "balanced.views.0"),
        ({}, "expected one of balanced and matched"),
        ({"balanced": EDEMA, "name": "a/b"}, "name: "),
        ({"balanced": EDEMA, "name": None}, "name: Field required"),
        ({"balanced": EDEMA, "outputs": ["ct"]}, "outputs.0"),
        ({"balanced": EDEMA, "outputs": ["frontal", "frontal"]}, "duplicate 'frontal'"),
        ({"balanced": EDEMA, "colour": "red"}, "colour: unknown; expected one of "),
        ({"balanced": EDEMA, "guidance_scale": {"lateral": 2.0}}, "guidance_scale names 'lateral'"),
        ({"matched": {"manifest": "m.parquet", "split": "test", "inputs": []}}, "matched: inputs"),
        ({"matched": {"manifest": "m.parquet", "split": "night"}}, "matched.split"),
        ({"matched": {"manifest": "none.parquet", "split": "test"}}, "no such manifest"),
        # What the model cannot do.
        ({"balanced": {**EDEMA, "sexes": ["F"]}}, "takes no 'demographics'"),
        ({"balanced": {**EDEMA, "severities": [3]}}, "takes no 'severity'"),
        ({"balanced": EDEMA, "outputs": ["report"]}, "'report' is an input and an output"),
        ({"balanced": EDEMA, "model": "CONTROL", "outputs": ["lateral"]}, "'lateral'"),
        ({"balanced": EDEMA, "model": "CONTROL", "outputs": ["frontal", "report"]}, "cannot generate 'report'"),
        ({"balanced": {**EDEMA, "races": ["a:b"]}, "model": "CONTROL"}, "race is 'a:b'"),
        ({"balanced": {**EDEMA, "severities": [19]}, "model": "CONTROL"}, "severit"),
        ({"balanced": EDEMA, "sampler": "euler"}, "sampler 'euler'"),
        ({"balanced": EDEMA, "num_inference_steps": 0}, "num_inference_steps is 0"),
        ({"balanced": EDEMA, "guidance_scale": -1.0}, "guidance_scale is -1"),
        ({"matched": {"manifest": "MANIFEST", "split": "test", "inputs": ["mask"]}}, "takes no 'mask'"),
        ({"matched": {"manifest": "MANIFEST", "split": "test", "inputs": ["frontal"]}}, "is an input and an output"),
        ({"matched": {"manifest": "MANIFEST", "split": "val"}}, "none of the 0 studies of split 'val'"),
    ],
)
@pytest.mark.parametrize("mode", [("--dry-run",), ()], ids=["dry", "run"])
def test_a_bad_plan_ends_in_one_line_and_writes_nothing(
    xgem: Any,
    write_plan: Any,
    control: Path,
    manifest: Path,
    tmp_path: Path,
    fields: dict[str, Any],
    message: str,
    mode: tuple[str, ...],
) -> None:
    if fields.get("model") == "CONTROL":
        fields = {**fields, "model": str(control)}
    if fields.get("matched", {}).get("manifest") == "MANIFEST":
        fields = {**fields, "matched": {**fields["matched"], "manifest": str(manifest)}}
    plan = write_plan(**{"outputs": ["frontal"], **fields})
    ran = xgem("cohort", plan, "--out", tmp_path / "out", "--device", "cpu", *mode)
    assert ran.code == 2
    assert message in ran.err
    assert ran.err.startswith("xgem: error: ")
    assert ran.err.count("\n") == 1
    assert ran.out == ""
    assert {path.name for path in tmp_path.iterdir()} == {"plan.yaml"}


def test_case_of_a_guidance_that_no_image_survives(cases_dir: Path) -> None:
    with pytest.raises(InputError, match=r"guidance_scale is 1e\+30, expected a finite number from 0 to 100"):
        read_plan(cases_dir / "plans" / "guid_huge.yaml")


def test_a_model_that_lacks_a_trained_part_is_refused(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    from xgem.checkpoints.store import init_checkpoint, save_component
    from xgem.configs.preset import load_preset
    from xgem.convert.random_init import random_component

    preset = load_preset("debug-chexgen")
    init_checkpoint(tmp_path / "half", preset)
    for name, config in preset.components.items():
        if name != "control":
            save_component(tmp_path / "half", name, random_component(config))
    half = {"model": str(tmp_path / "half"), "outputs": ["frontal"]}
    ran = xgem("cohort", write_plan(**half, balanced={**EDEMA, "severities": [3.0]}), "--dry-run")
    assert (ran.code, "has no trained 'control', which 'severity' needs" in ran.err) == (2, True)
    assert xgem("cohort", write_plan(**half, balanced={**EDEMA, "sexes": ["F"]}), "--dry-run").code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out is missing"),
        (("--out", "x", "--dry-run", "--collect"), "expected one of them"),
        (("--out", "x", "--shard", "3/2"), "--shard is '3/2'"),
        (("--out", "x", "--shard", "0/2"), "--shard is '0/2'"),
        (("--out", "x", "--shard", "two"), "--shard is 'two'"),
    ],
)
def test_bad_options(xgem: Any, write_plan: Any, arguments: tuple[str, ...], message: str) -> None:
    ran = xgem("cohort", write_plan(outputs=["frontal"], balanced=EDEMA), *arguments)
    assert (ran.code, message in ran.err) == (2, True)


@pytest.mark.parametrize("text", ["name: [", "- a", "3", ""])
def test_what_is_no_plan(xgem: Any, tmp_path: Path, text: str) -> None:
    (tmp_path / "plan.yaml").write_text(text, encoding="utf-8")
    ran = xgem("cohort", tmp_path / "plan.yaml", "--dry-run")
    assert (ran.code, ran.err.count("\n")) == (2, 1)
    assert "plan.yaml" in ran.err
    assert xgem("cohort", tmp_path / "none.yaml", "--dry-run").code == 2


def test_items_are_functions_of_seed_and_number(write_plan: Callable[..., Path]) -> None:
    part = {"findings": ["Edema", "Fracture"], "sexes": ["F", "M"], "ages": [[20, 80]], "views": ["frontal"]}
    few = expand(read_plan(write_plan(outputs=["frontal"], balanced={**part, "count": 2})))
    many = expand(read_plan(write_plan(outputs=["frontal"], balanced={**part, "count": 9})))
    other = expand(read_plan(write_plan(outputs=["frontal"], balanced={**part, "count": 9}, seed=6)))
    assert list(few) == list(many)[: len(few)]
    assert few.sha256 == many.sha256 != other.sha256
    assert len({item.seed for item in many}) == len(many) == 36
    assert not {item.seed for item in many} & {item.seed for item in other}
    assert len({item.age for item in many}) > 15
    assert sorted(i for batch in many.batches for i in batch.indices) == list(range(36))
    assert [batch.indices for batch in few.batches] == [batch.indices for batch in many.batches[:2]]


def test_kinds_of_outputs_are_batched_apart(write_plan: Callable[..., Path]) -> None:
    part = {"findings": ["Edema"], "views": ["frontal", ["frontal", "lateral"]], "count": 5}
    cohort = expand(read_plan(write_plan(outputs=["frontal", "lateral"], balanced=part)))
    assert [batch.indices for batch in cohort.batches] == [(0, 2, 4, 6), (8,), (1, 3, 5, 7), (9,)]
    assert [batch.name for batch in cohort.batches] == ["00-0000000", "00-0000001", "01-0000000", "01-0000001"]


def test_shards() -> None:
    assert parse_shard("2/3") == Shard(1, 3)
    shared = [list(Shard(k, 3).of(range(8))) for k in range(3)]
    assert sorted(number for part in shared for number in part) == list(range(8))
    assert environment_shard({}) == Shard()
    assert environment_shard({"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}) == Shard(5, 8, 1)
    with pytest.raises(InputError, match="RANK=8"):
        environment_shard({"RANK": "8", "WORLD_SIZE": "8"})


def test_help_imports_no_torch(project: Path) -> None:
    program = "import sys; from xgem.cli import main; main(['cohort', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=project, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "--shard" in done.stdout


def test_a_cohort_of_the_first_version_goes_on(
    xgem: Any, write_plan: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its plan has the old names of options, and so has what it was started with; its images lie in ``pictures``."""
    plan = write_plan(outputs=["frontal"], balanced=EDEMA, batch_size=1, control_guidance_end=0.5)
    old = write_plan("old", outputs=["frontal"], balanced=EDEMA, batch_size=1, control_end=0.5)
    whole, out = tmp_path / "whole", tmp_path / "out"
    for place in (whole, out):
        assert xgem("cohort", plan, "--out", place, "--device", "cpu", "--no-progress").code == 0
    # As 0.1.0 would have left it after the first of two batches.
    (out / "images").rename(out / "pictures")
    (out / "cohort.json").unlink()
    state = out / ".cohort"
    begun = json.loads((state / "begun.json").read_text(encoding="utf-8"))
    for request in begun["requests"]:
        for name, now in RENAMED.items():
            if now in request:
                request[name] = request.pop(now)
    (state / "begun.json").write_text(json.dumps(begun), encoding="utf-8")
    first, second = sorted((state / "batches").iterdir())
    first.write_text(first.read_text(encoding="utf-8").replace("images/", "pictures/"), encoding="utf-8")
    second.unlink()
    (out / "pictures" / "00000001-frontal.png").unlink()
    kept = (out / "pictures" / "00000000-frontal.png").stat().st_mtime_ns
    ran = xgem("cohort", old, "--out", out, "--device", "cpu", "--no-progress")
    assert ran.code == 0, ran.err
    assert "old.yaml: control_end is deprecated, use control_guidance_end" in caplog.text
    assert (out / "pictures" / "00000000-frontal.png").stat().st_mtime_ns == kept
    assert not (out / "images").exists()
    for number in range(2):
        name = f"0000000{number}-frontal.png"
        assert (out / "pictures" / name).read_bytes() == (whole / "images" / name).read_bytes()
    # Another value is another cohort, by whichever name.
    other = write_plan("other", outputs=["frontal"], balanced=EDEMA, batch_size=1, control_end=0.25)
    assert "with another plan" in xgem("cohort", other, "--out", out, "--device", "cpu", "--no-progress").err


def test_a_cohort_begun_when_ddim_was_another_goes_on_with_that(xgem: Any, write_plan: Any, tmp_path: Path) -> None:
    """Until metadata format 2, ``ddim`` was what is now ``ddim-leading``, and a cohort did not keep the format."""
    plan = write_plan(outputs=["frontal"], balanced=EDEMA, batch_size=1, sampler="ddim")
    now, out = tmp_path / "now", tmp_path / "out"
    for place in (now, out):
        assert xgem("cohort", plan, "--out", place, "--device", "cpu", "--no-progress").code == 0
    state = out / ".cohort"
    begun = json.loads((state / "begun.json").read_text(encoding="utf-8"))
    del begun["format"]
    (state / "begun.json").write_text(json.dumps(begun), encoding="utf-8")
    sorted((state / "batches").iterdir())[1].unlink()
    ran = xgem("cohort", plan, "--out", out, "--device", "cpu", "--no-progress")
    assert ran.code == 0, ran.err
    first, second = (f"images/0000000{number}-frontal.png" for number in range(2))
    assert (out / first).read_bytes() == (now / first).read_bytes()
    assert (out / second).read_bytes() != (now / second).read_bytes()
