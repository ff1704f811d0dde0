"""The papers' experiments at debug size: each runs, resumes, and refuses what cannot be measured."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from xgem.cli.bench import EXPERIMENTS as COMMANDS
from xgem.data.manifest import Manifest
from xgem.eval.families import utility
from xgem.experiments.papers import downstream, made_up, report_models, synthetic
from xgem.experiments.papers.plans import EXPERIMENTS, SIZES, Downstream, Training, published, read_experiment
from xgem.experiments.papers.run import run_experiment
from xgem.experiments.papers.steps import preset_of
from xgem.experiments.papers.tables import PAPER, RUN, Beside, Cell, Table
from xgem.types import ConfigError, DataError, InputError, OutputError, XgemError


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of drawn studies."""
    return made_up.draw(tmp_path_factory.mktemp("drawn") / "studies", name="made-up", seed=0)


@pytest.fixture(scope="module")
def changes(debug_checkpoint: Path, chexgen_checkpoint: Path) -> Callable[[str], list[str]]:
    """Settings under which an experiment takes checkpoints of random weights in place of trained ones."""

    def of(name: str) -> list[str]:
        plan = read_experiment(name)
        if plan.kind == "routes":
            return [
                "training={}",
                "routes=[L+T->F, F+L->T]",
                f"models={{CoDi_XR: {debug_checkpoint}, XGeM: {debug_checkpoint}}}",
            ]
        if plan.kind == "joint":
            steps = [f"training.{one}.steps=1" for one in ("base", "generators", "published")]
            return [*steps, "models={published: published}"]
        if plan.kind == "reports":
            base = "{preset: debug, stages: [clip, report-vae], steps: 2, set: [report-vae.steps=1]}"
            return [f"models={{xgem: {debug_checkpoint}}}", f"training={{base: {base}}}"]
        model = chexgen_checkpoint if name in ("augmentation", "fairness") else debug_checkpoint
        models = ", ".join(f"{one}: {model}" for one in plan.debug["models"])
        return ["training={}", f"models={{{models}}}"]

    return of


def rows(out: Path) -> list[dict[str, str]]:
    with (out / "table.csv").open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


# Of each experiment: the table, a row and a column that have a number of this run, and one that the paper has
CELLS = {
    "multi-prompt": (("fid", "XGeM", "L+T->F xgem-classifier"), ("bleu", "XGeM", "F+L->T BLEU-4")),
    "alignment": (("cosine", "L->F+T", "joint, published"), ("cosine", "L->F+T", "joint")),
    "anonymisation": (("frontal", "Synthetic", "F1 Weighted"), ("frontal", "Synthetic", "F1 Weighted")),
    "imbalance": (("frontal", "Real + Synthetic", "F1 Lung Opacity"), ("frontal, positives", "Edema", "Positive (%)")),
    "scarcity": (("frontal", "2x synthetic", "AUROC Macro"), ("frontal", "2x synthetic", "AUROC Macro")),
    "report-utility": (("reports", "ROUGE-L", "xgem"), ("reports", "Micro F1-14", "Sana")),
    "augmentation": (("SIIM-ACR-PTX, Candid-PTX", "Positive Dice", "Real+2x Syn."), ("RALO", "MAE", "Real+1x Syn.")),
    "pretraining": (("MIMIC-CXR", "30 %", "pretrained 2x"), ("MIMIC-CXR", "1 %", "pretrained 5x")),
    "few-shot": (("MedFMC", "5-shot, round shadow", "pretrained 1x"), ("MedFMC", "1-shot", "no synthetic")),
    "fairness": (("mitigation", "age", "worst, topped up"), ("mitigation", "race", "gap, topped up")),
}


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_gives_its_papers_tables(name: str, tmp_path: Path, changes: Callable[[str], list[str]]) -> None:
    out = tmp_path / name
    table = run_experiment(name, out, changes=changes(name), device="cpu", progress=False)
    text = table.read_text(encoding="utf-8")
    assert "mean nothing" in text
    own, papers = CELLS[name]
    found = {(one["table"], one["row"], one["column"], one["by"]): one for one in rows(out)}
    measured = found[*own, RUN]
    assert float(measured["value"]) == float(measured["value"]), measured  # a number
    assert found[*papers, PAPER]["value"]
    computed = [one for one in found.values() if one["by"] == RUN and one["value"]]
    assert len(computed) >= 4
    reasons = {one["not_computed"] for one in found.values() if one["by"] == RUN and not one["value"]}
    assert not [reason for reason in reasons if "not among" in reason or not reason]


def test_all_experiments_have_plans_figures_and_commands() -> None:
    assert tuple(COMMANDS) == EXPERIMENTS
    for name in EXPERIMENTS:
        plan = read_experiment(name)
        assert plan.name == name
        for size in SIZES:
            settings = plan.sized(size)
            for training in settings.training.values():
                preset_of(training)
            if isinstance(settings, Downstream):
                for task in settings.tasks.values():
                    runs = task.network.utility(task.task).runs
                    assert runs == (5 if size == "paper" else 2)
        figures = published(name)
        assert figures
        for key in figures:
            beside = Beside.of(Table(key, key), figures)
            assert beside.published
            assert beside.source


def test_single_prompt_training_and_the_published_loss_are_settings_of_stages() -> None:
    single = read_experiment("multi-prompt").sized("debug").training["single"]
    assert all(preset_of(single).train[stage].loss == {"single": 1} for stage in single.stages)
    joint = read_experiment("alignment").sized("debug").training
    assert preset_of(joint["published"]).train["joint"].loss == {"published": 1, "contrastive": 1, "temperature": 1}
    seen = {
        name: getattr(preset_of(joint[name]).components["alignment"], "attends", "") for name in ("published", "xgem")
    }
    assert seen == {"published": "own", "xgem": "others"}


def test_stopped_anywhere_it_goes_on_to_the_same_table(
    tmp_path: Path, changes: Callable[[str], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    own = [*changes("imbalance"), "bootstrap=20"]
    whole = run_experiment("imbalance", tmp_path / "whole", changes=own, **options).read_text()
    out = tmp_path / "stopped"
    # Killed before the networks are trained, then when the results are written
    for target in ("xgem.eval.families.utility.evaluate_sets", "xgem.experiments.papers.run.as_csv"):
        with monkeypatch.context() as patch:
            patch.setattr(target, stop)
            with pytest.raises(KeyboardInterrupt):
                run_experiment("imbalance", out, changes=own, **options)
    assert not (out / "table.md").exists()
    with monkeypatch.context() as patch:
        patch.setattr("xgem.eval.families.utility.evaluate_sets", stop)  # a finished step is not done again
        assert run_experiment("imbalance", out, changes=own, **options).read_text() == whole
    assert (out / "table.csv").read_bytes() == (tmp_path / "whole" / "table.csv").read_bytes()
    with pytest.raises(OutputError, match=r"begun with another settings\.bootstrap \(20, now 30\)"):
        run_experiment("imbalance", out, changes=[*own, "bootstrap=30"], **options)
    with pytest.raises(OutputError, match=r"begun with another experiment"):
        run_experiment("scarcity", out, changes=[*changes("scarcity"), "bootstrap=20"], **options)


def test_imbalance_tops_up_and_says_by_how_much(tmp_path: Path, changes: Callable[[str], list[str]]) -> None:
    options: dict[str, Any] = {"device": "cpu", "progress": False}
    own = [*changes("imbalance"), "bootstrap=20", "tasks.frontal.network.runs=1"]
    text = run_experiment("imbalance", tmp_path / "skewed", changes=own, **options).read_text(encoding="utf-8")
    record = json.loads((tmp_path / "skewed" / "steps" / "frontal-XGeM" / "results.json").read_text())
    details = record["families"][0]["details"]
    before, after = details["real"], details["real + balance"]
    assert before["positives"] == {"Cardiomegaly": 16, "Pleural Effusion": 12, "Lung Opacity": 8}
    assert after["images"] > before["images"] == 32
    assert min(after["positives"].values()) >= 16
    found = {(one["row"], one["column"]): one for one in rows(tmp_path / "skewed") if one["by"] == RUN}
    assert float(found["Lung Opacity", "Positive (%)"]["value"]) == 25
    topped = found["Lung Opacity", "Positive after topping up (%)"]
    assert float(topped["value"]) == pytest.approx(100 * after["positives"]["Lung Opacity"] / after["images"])
    assert "topped up," not in text
    # Classes that are equally frequent already
    run_experiment("imbalance", tmp_path / "even", changes=[*own, "data=made-up"], **options)
    text = (tmp_path / "even" / "table.md").read_text(encoding="utf-8")
    assert "- Real + Synthetic: nothing was topped up, the training set is that of real images" in text


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        run_experiment("scarcity", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    (tmp_path / "out" / "data").mkdir(parents=True)
    (tmp_path / "out" / "data" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="not empty"):
        run_experiment("scarcity", tmp_path / "out")


def edited(drawn: Path, tmp_path: Path, **fields: Any) -> Path:
    """The drawn studies with fields that differ; a function of the row gives the value."""
    given = {name: value if callable(value) else lambda _, value=value: value for name, value in fields.items()}
    manifest = Manifest.read(drawn)
    made = tuple(row.model_copy(update={name: of(row) for name, of in given.items()}) for row in manifest.rows)
    Manifest(made, manifest.root).write(tmp_path / "edited.jsonl")
    return tmp_path / "edited.jsonl"


@pytest.mark.parametrize(
    ("name", "fields", "reason"),
    [
        ("anonymisation", {"labels": (), "impression": ""}, r"none of its 32 items has an image and labels"),
        ("anonymisation", {"split": "train"}, r"no study of split 'test'"),
        ("anonymisation", {"labels": ("Cardiomegaly", "no Lung Opacity")}, r"no image shows 'Pleural Effusion'"),
        ("augmentation", {"masks": {}, "boxes": ()}, r"train: no image has a mask of consolidation; this task"),
        ("augmentation", {"boxes": ()}, r"train: no image has a box of pneumonia; this task"),
        ("augmentation", {"severity": None}, r"has an image and a severity"),
        ("fairness", {"sex": None}, r"no study of split 'train' has its sex"),
        ("fairness", {"age": None}, r"no study of split 'train' has its age"),
        ("report-utility", {"impression": ""}, r"has a frontal and an impression"),
        ("multi-prompt", {"split": "train"}, r"no study of split 'test'"),
        ("alignment", {"split": "val"}, r"no study of split 'test'"),
    ],
)
def test_data_that_lack_something_are_refused_before_anything_is_trained(
    name: str, fields: dict[str, Any], reason: str, drawn: Path, tmp_path: Path
) -> None:
    data = edited(drawn, tmp_path, **fields)
    with pytest.raises((DataError, InputError), match=reason) as refused:
        run_experiment(name, tmp_path / "out", data=data, device="cpu", progress=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "trained").exists()
    assert not (tmp_path / "out" / "steps").exists()


def test_an_external_test_set_of_the_same_patients_is_refused(drawn: Path, tmp_path: Path) -> None:
    same = edited(drawn, tmp_path, split="test", study=lambda row: f"x{row.study}")
    changes = [f"tasks.MIMIC-CXR.external={{other: {same}}}"]
    with pytest.raises(DataError, match=r"share subject 'made-up-train00'; split by subject"):
        run_experiment("augmentation", tmp_path / "out", data=drawn, changes=changes, device="cpu", progress=False)
    assert not (tmp_path / "out" / "trained").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (["bootsrap=3"], r"bootsrap: unknown, did you mean bootstrap\?"),
        (["tasks.frontal.network.widht=3"], r"tasks\.frontal\.network\.widht: unknown, did you mean width\?"),
        (["tasks.network={suit: imbalance}"], r"tasks\.network\.suite: Field required"),
        (["tasks.network={suite: imbalance, suit: a}"], r"tasks\.network\.suit: unknown, did you mean suite\?"),
        (["bootstrap"], r"--set bootstrap: expected KEY=VALUE"),
        (["bootstrap=0"], r"bootstrap: .*greater than or equal to 1"),
        (["tasks.frontal.suite=other"], r"tasks\.frontal\.suite: Input should be 'augmentation'"),
        (["tasks.frontal.models=[theirs]"], r"no model 'theirs', only XGeM"),
        (["models={}"], r"nothing makes synthetic images"),
        (["tasks.frontal.network.training={stepz: 3}"], r"expected some of epochs, steps"),
        (["training.base.init=frontal"], r"starts from 'frontal', which comes after it"),
        (["training.base.set=[clip.stepz=3]"], r"clip has no field 'stepz'"),
        (["training.base.preset=none"], r"unknown preset 'none'"),
        (["data=nowhere.parquet"], r"nowhere\.parquet: no such manifest"),
        (["data=null"], r"no data; give a manifest"),
    ],
)
def test_plans_that_are_not_valid(changes: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(XgemError, match=reason) as refused:
        run_experiment("anonymisation", tmp_path / "out", changes=changes, device="cpu", progress=False)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "out" / "trained").exists()


def test_the_plan_of_the_guide(project: Path, tmp_path: Path) -> None:
    guide = (project / "docs" / "guides" / "experiments.md").read_text(encoding="utf-8")
    (tmp_path / "plan.yaml").write_text(guide.partition("```yaml\n")[2].partition("```")[0], encoding="utf-8")
    settings = read_experiment("augmentation", tmp_path / "plan.yaml").sized("paper", ["tasks.mine.network.runs=3"])
    assert isinstance(settings, Downstream)
    assert list(settings.tasks) == ["mine"]
    network = settings.tasks["mine"].network.utility("classification")
    assert (network.runs, network.training.epochs, network.training.batch_size) == (3, 20, 128)


def test_plans_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "plan.yaml"
    own.write_text("extends: scarcity\ntitle: Mine\ndebug: {bootstrap: 7}\n", encoding="utf-8")
    plan = read_experiment("scarcity", own)
    assert (plan.title, plan.sized("debug").bootstrap) == ("Mine", 7)
    assert plan.sized("debug").models == {"XGeM": "frontal"}
    with pytest.raises(ConfigError, match=r"is of experiment 'scarcity', expected 'imbalance'"):
        read_experiment("imbalance", own)
    with pytest.raises(InputError, match=r"unknown experiment 'scarce': expected one of multi-prompt, alignment"):
        read_experiment("scarce")
    own.write_text("extends: scarcity\nkind: other\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown kind 'other': expected one of routes"):
        read_experiment("scarcity", own)


def test_the_command_lists_experiments_and_prints_tables(
    xgem: Callable[..., Any], tmp_path: Path, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = xgem("bench", "list")
    assert [line.split()[0] for line in listed.out.splitlines()] == [*EXPERIMENTS, "chexgenbench"]
    plans = [read_experiment(name) for name in EXPERIMENTS]
    assert len({line.index(plan.title) for line, plan in zip(listed.out.splitlines(), plans, strict=False)}) == 1
    guide = (project / "docs" / "guides" / "experiments.md").read_text(encoding="utf-8")
    for plan, line in zip(plans, listed.out.splitlines(), strict=False):
        assert plan.source in line
        assert f"| `{plan.name}` | {plan.source} |" in guide
        paper, _, tables = plan.source.partition(", ")
        assert COMMANDS[plan.name].startswith(f"{paper}: ")
        assert COMMANDS[plan.name].endswith(f" ({tables}).")
    assert xgem("bench", "nothing", "--out", tmp_path / "x").code == 2
    refused = xgem("bench", "scarcity", "--out", tmp_path / "out", "--size", "paper")
    assert (refused.code, refused.err.count("\n")) == (2, 1)
    assert "no data; give a manifest (--data" in refused.err

    def written(name: str, out: Path, **options: Any) -> Path:
        assert (name, options["size"], options["changes"]) == ("scarcity", "debug", ["bootstrap=9"])
        (tmp_path / "table.md").write_text("a table\n")
        return tmp_path / "table.md"

    monkeypatch.setattr("xgem.experiments.papers.run.run_experiment", written)
    done = xgem("bench", "scarcity", "--out", tmp_path / "out", "--set", "bootstrap=9")
    assert (done.code, done.out) == (0, "a table\n")


def test_a_table_beside_the_published_one() -> None:
    table = Table("t", "Title")
    table.put("Edema", "Real", Cell(0.5, 0.01, 0.4, 0.6, 20, 0.03, "Wilcoxon"))
    table.put("Edema", "Real+1x Syn.", Cell(reason="too few"))
    table.put("Brier score", "Real", Cell(0.2))
    papers = {
        "t": {
            "source": "P, Table 1",
            "scale": 100,
            "columns": ["Real", "Other"],
            "rows": {"Edema": ["48.00 ± 0.10", None]},
        }
    }
    beside = Beside.of(table, papers)
    lines = beside.markdown().splitlines()
    assert lines[0] == "### Title (P, Table 1)"
    assert lines[2] == "|  | by | Real | Real+1x Syn. |"
    assert lines[4:7] == [
        "| Edema | this run | 50.00 ± 1.00 (p 0.03) | not computed |",
        "| Edema | published | 48.00 ± 0.10 |  |",
        "| Brier score | this run | 0.200 |  |",
    ]
    assert lines[-1] == "- Not computed: Edema, Real+1x Syn.: too few."
    kept = list(beside.rows())
    assert kept[0] == ["t", "Edema", "Real", RUN, 50.0, 1.0, 40.0, 60.0, 20, 0.03, "Wilcoxon", ""]
    assert kept[2][:6] == ["t", "Edema", "Real", PAPER, "48.00", "0.10"]
    with pytest.raises(ConfigError, match=r"row 'Edema': 2 figures of 1"):
        Beside.of(table, {"t": {"columns": ["Real"], "rows": {"Edema": [1, 2]}}})


def test_drawn_studies_are_the_same_every_time(drawn: Path, tmp_path: Path) -> None:
    again = made_up.draw(tmp_path / "again", name="made-up", seed=0)
    other = made_up.draw(tmp_path / "other", name="made-up-external", seed=1)
    assert again.read_bytes() == drawn.read_bytes()
    assert other.read_bytes() != drawn.read_bytes()
    Manifest.read(drawn).check()
    for split in ("train", "val", "test"):
        studies = Manifest.read(drawn).studies(split)
        for finding in (*made_up.FINDINGS, made_up.OWN):
            assert sum(finding in study.labels for study in studies) == len(studies) / 2
        assert {study.sex for study in studies} == {"F", "M"}


def test_synthetic_images_inherit_what_their_studies_say(drawn: Path, tmp_path: Path) -> None:
    image = next(drawn.parent.glob("*.png"))
    (tmp_path / "set.csv").write_text(f"id,file,pair,Edema\na,{image},made-up-train07,1\nb,{image},elsewhere,1\n")
    items = synthetic.existing(str(tmp_path / "set.csv"), ("Edema", made_up.OWN), "frontal")
    told = synthetic.with_studies(items, drawn, (*made_up.FINDINGS, made_up.OWN))
    study = next(one for one in Manifest.read(drawn).studies("train") if one.id == "made-up-train07")
    first, second = told.items
    assert dict(first.labels) == dict.fromkeys((*made_up.FINDINGS, made_up.OWN), 1.0)
    assert (first.sex, first.age, first.severity) == (study.sex, study.age, study.severity)
    assert dict(second.labels) == {"Edema": 1.0}
    kept = synthetic.of_classes(told, (made_up.OWN, "Fracture"), absent=True)
    assert [dict(item.labels) for item in kept.items] == [
        {made_up.OWN: 1.0, "Fracture": 0.0},
        {made_up.OWN: 0.0, "Fracture": 0.0},
    ]
    assert dict(synthetic.of_classes(told, ("Fracture",), absent=False).items[0].labels) == {}


def test_pairs_for_a_report_model(drawn: Path, tmp_path: Path) -> None:
    first, second = sorted(drawn.parent.glob("*frontal.png"))[:2]
    made = report_models.pairs_of(
        {"made-up-train01#0": first, "made-up-train01#1": second}, drawn, tmp_path / "p" / "m.jsonl"
    )
    manifest = Manifest.read(made)
    manifest.check()
    train, val = manifest.studies("train"), manifest.studies("val")
    assert [study.impression for study in train] == ["The heart is enlarged."] * 2
    assert all(set(study.images) == {"frontal"} for study in train)
    assert len(val) == 16
    assert {study.subject for study in val}.isdisjoint(study.subject for study in train)
    preset = report_models.report_preset(preset_of(Training(preset="debug", stages=("report",))))
    assert set(preset.outputs) == {"report"}
    assert preset.inputs("report") == ("frontal",)
    with pytest.raises(ConfigError, match="needs encoders of frontals and reports"):
        report_models.report_preset(preset_of(Training(preset="debug-chexgen", stages=("frontal",))))


def test_what_a_step_keeps_is_a_record(tmp_path: Path, changes: Callable[[str], list[str]]) -> None:
    run_experiment("anonymisation", tmp_path, changes=changes("anonymisation"), device="cpu", progress=False)
    record = json.loads((tmp_path / "steps" / "frontal-XGeM" / "results.json").read_text())
    assert record["families"][0]["family"] == utility.FAMILY
    assert re.search("sd_over_runs", json.dumps(record))
    assert record["families"][0]["route"] == downstream.TEST
