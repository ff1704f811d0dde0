"""The benchmark end to end on a tiny model: killed, resumed, and read again."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
import yaml

from xgem.cli import main
from xgem.eval.schema import Record, read_record
from xgem.experiments import MEANS_NOTHING
from xgem.experiments.chexgenbench import parts, tables
from xgem.experiments.chexgenbench.data import Sources
from xgem.experiments.chexgenbench.plan import PARTS, Part, read_bench

FILES = ("README.md", "index.html", "tables/table1_fidelity.csv", "tables/table4_classification.csv")


class Killed(BaseException):
    """Ends a run as a signal would: nothing catches it."""


def table(file: Path) -> dict[str, dict[str, str]]:
    """A CSV's rows by their first cell."""
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    return {next(iter(row.values())): row for row in rows}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, values: dict[str, Any]) -> Path:
    """A benchmark that was killed in its third part, and resumed."""
    root = tmp_path_factory.mktemp("bench")
    plan = root / "plan.yaml"
    plan.write_text(yaml.safe_dump(values), encoding="utf-8")
    command = ["bench", "chexgenbench", str(plan), "--out", str(root / "out"), "--no-progress"]
    measure, calls = parts.measure, 0

    def dies(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Killed
        return measure(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "measure", dies)
        with pytest.raises(Killed):
            main(command)
    assert (root / "out" / "models" / "tiny" / "privacy" / "privacy.json").is_file()
    assert not (root / "out" / "README.md").exists()
    first = (root / "out" / "models" / "tiny" / "fidelity" / "fidelity.json").read_bytes()
    assert main(command) == 0
    assert (root / "out" / "models" / "tiny" / "fidelity" / "fidelity.json").read_bytes() == first  # not done again
    return root / "out"


def test_what_is_finished_is_not_done_again_and_the_tables_stay(
    out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {name: (out / name).read_bytes() for name in FILES}

    def never(*arguments: Any) -> Any:
        raise AssertionError(arguments)

    monkeypatch.setattr(parts, "measure", never)
    assert main(["bench", "chexgenbench", str(out.parent / "plan.yaml"), "--out", str(out)]) == 0
    assert "0 parts measured; 2 models and the real images; see" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in FILES} == before


def test_a_plan_that_changes_a_part_measures_that_part_alone(
    out: Path, tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.yaml"
    changed = values | {"privacy": values["privacy"] | {"delta": 0.5}, "parts": ["fidelity", "privacy"]}
    plan.write_text(yaml.safe_dump(changed | {"models": values["models"][:1]}), encoding="utf-8")
    shared = tmp_path / "out"
    shared.symlink_to(out)
    record = out / "models" / "tiny" / "privacy" / "privacy.json"
    kept = record.read_bytes()
    try:
        assert main(["bench", "chexgenbench", str(plan), "--out", str(shared)]) == 0
        said = capsys.readouterr()
        assert "1 part measured; 1 model; see" in said.out
        assert said.err.splitlines()[-1] == "tiny: tiny, privacy"  # which model, which part
        assert read_record(record).families[0].settings["delta"] == 0.5
    finally:
        record.write_bytes(kept)
        assert main(["bench", "chexgenbench", str(out.parent / "plan.yaml"), "--out", str(out)]) == 0


def test_every_part_has_its_record_and_its_numbers(out: Path) -> None:
    for part in PARTS:
        record = read_record(out / "models" / "tiny" / part / f"{part}.json")
        assert not record.families[0].not_computed, part
        assert any(metric.value is not None for metric in record.families[0].metrics), part
    fidelity = table(out / "tables" / "table1_fidelity.csv")
    assert {"tiny", "theirs"} == fidelity.keys()
    assert all(float(row["frd"]) > 0 and float(row["fid"]) > 0 for row in fidelity.values())
    found = read_record(out / "models" / "tiny" / "fidelity" / "fidelity.json").families[0].metrics
    frd = next(metric for metric in found if metric.name == "frd" and not metric.of)
    assert frd.value is not None
    assert frd.value.value is not None
    assert frd.references["floor"].value.value is not None
    assert frd.references["floor"].value.value < frd.value.value  # real images are nearer to real ones
    privacy = table(out / "tables" / "table3_privacy.csv")["tiny"]
    assert 0 <= float(privacy["reid_score"]) <= float(privacy["reid_score_max"]) <= 1
    assert float(privacy["pixel_distance"]) > 0
    assert privacy["reid_count_of"] == "8"  # 4 prompts, 2 seeds
    classification = table(out / "tables" / "table4_classification.csv")
    assert {"real", "tiny"} <= classification.keys()
    assert 0 <= float(classification["real"]["Cardiomegaly"]) <= 1
    assert {"real", "tiny", "theirs"} == table(out / "tables" / "table5_reports.csv").keys()


def test_ranks_and_the_benchmarks_own_columns(out: Path) -> None:
    ranks = table(out / "tables" / "table8_fidelity_ranks.csv")
    fidelity = table(out / "tables" / "table1_fidelity.csv")
    best = min(fidelity, key=lambda name: float(fidelity[name]["frd"]))
    assert float(ranks[best]["frd"]) == 1
    own = (out / "tables" / "image_generation_metrics.csv").read_text().splitlines()[0]
    assert own.startswith("FID,FID (RadDino),KID,KID (RadDino),Precision,Recall,Density,Coverage")
    conditional = (out / "tables" / "conditional_image_generation_metrics.csv").read_text()
    assert "Cardiomegaly" in conditional


def test_the_summary_says_what_is_missing_and_shows_the_paper(out: Path) -> None:
    text = (out / "README.md").read_text()
    assert "*Sana (paper)* | 54.23" in text
    assert "rad-dino: no weights" in text
    assert "## Table 1: fidelity (in mobilenet-v2; the paper's rows in rad-dino)" in text
    assert "## Table 3: privacy (latent distance in mobilenet-v2; the paper's rows in rad-dino)" in text
    assert MEANS_NOTHING not in text
    assert "the plan gives no images of theirs for privacy" in text
    page = (out / "index.html").read_text()
    assert 'href="models/tiny/fidelity/fidelity.html"' in page
    assert "Table 4" in page
    assert (out / "models" / "tiny" / "fidelity" / "fidelity.html").is_file()


def test_debug_size_says_on_every_page_that_its_numbers_mean_nothing(out: Path) -> None:
    pages = ("README.md", "index.html", "tables/README.md")
    plan = read_bench(out.parent / "plan.yaml")
    records: dict[str, dict[Part, Record]] = {
        name: {part: read_record(out / "models" / "tiny" / part / f"{part}.json") for part in PARTS}
        for name in ("tiny", "theirs")
    }
    made = out.parent / "debug"
    made.mkdir()
    for debug in (False, True, False):
        text = tables.write(plan.model_copy(update={"debug": debug}), Sources(plan, out), records, made)
        said = [(made / page).is_file() and MEANS_NOTHING in (made / page).read_text() for page in pages]
        assert said == [debug] * 3
        assert ("Overall: ranks" in text) is (made / "tables" / "overall_ranks.csv").is_file() is not debug
    ranked = text.partition("## Ranks by report generation")[2].partition("##")[0]
    assert "Ties, which get the mean of their ranks: bleu_1, bleu_4, rouge_l" in ranked
    assert read_bench(None).debug
    assert not read_bench(None, size="paper").debug


def test_one_of_two_studies_with_the_same_text_is_left_out(out: Path) -> None:
    from xgem.data.manifest import Manifest

    kept = [study.id for study in Manifest.read(out / "real.parquet").studies("train")]
    assert len(kept) == 13
    assert "s01" in kept
    assert "s03" not in kept
