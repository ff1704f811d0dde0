"""The model card: every number in it comes from the checkpoint or its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xgem.checkpoints.store import checkpoint_hash
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.eval.card import write_card
from xgem.eval.record import FamilyResult, Metric
from xgem.eval.report import write_results
from xgem.metrics.bootstrap import Estimate
from xgem.types import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "random"
    random_checkpoint(root, load_preset("debug"))
    return root


def evaluation(folder: Path, checkpoint: str, names: tuple[str, ...] = ("routes", "joint")) -> Path:
    """Records of a run: a number of each command's own, and one that could not be computed."""
    settings = {"model": {"name": "x", "hash": checkpoint}, "split": "val", "sampling": {"seed": 3}}
    for k, name in enumerate(names):
        metrics = [
            Metric("fid", Estimate(k + 1.5, k + 1.0, k + 2.0, 340), extractor="rad-dino"),
            *(Metric.missing(key, "no weights", extractor="inception-v3") for key in ("fid", "kid")),
        ]
        write_results([FamilyResult("fidelity", metrics, {}, route="F->L")], folder, name, settings=settings)
    return folder


FIRST, SECOND = (f"| FID (Frechet distance) | {k}.500 [{k}.000, {k + 1}.000] | 340 |  | rad-dino |" for k in (1, 2))


def test_it_holds_counts_hash_and_tables(root: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- results:begin -->\nold\n<!-- results:end -->\nafter\n")
    card = write_card(root, evaluation(tmp_path / "eval", checkpoint_hash(root)), readme=readme).read_text()
    assert checkpoint_hash(root) in card
    total = sum(int(row.split("|")[2].replace(",", "")) for row in card.splitlines() if row.startswith("| image_vae |"))
    assert total > 10_000
    text = readme.read_text()
    assert "old" not in text
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    for row in (FIRST, SECOND, "#### Fidelity, F->L", "split val, seed 3"):
        assert row in card
        assert row in text
    # One line for all that lacked the same weights
    assert card.count("- Not computed: FID (Frechet distance) (inception-v3), KID") == 2


def test_families_of_measures_go_into_the_card_and_not_into_readme(root: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    measured = evaluation(tmp_path / "eval", checkpoint_hash(root), ("routes", "joint", "all"))
    third = FIRST.replace("1.500 [1.000, 2.000]", "3.500 [3.000, 4.000]")
    card = write_card(root, measured, readme=readme).read_text()
    assert third in card
    assert FIRST in card
    assert third not in readme.read_text()
    record = json.loads((measured / "all.json").read_text())
    record["settings"]["model"]["hash"] = "another"
    (measured / "all.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=r"all\.json: measured checkpoint another"):
        write_card(root, measured)


def test_what_only_some_models_are_measured_by_follows_the_rest(root: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    measured = evaluation(tmp_path / "eval", checkpoint_hash(root), ("routes", "joint", "codec", "prompts"))
    for text in (write_card(root, measured, readme=readme).read_text(), readme.read_text()):
        titles = [line[4:] for line in text.splitlines() if line.startswith("### ")]
        assert titles == [
            "Single outputs", "Several outputs of one request", "Frontals from a sentence", "The report codec alone"
        ]  # fmt: skip


def test_what_is_missing_is_said(root: Path) -> None:
    card = write_card(root, None).read_text()
    assert "has not been evaluated" in card
    assert "Training data: not documented." in card


def test_notes_become_part_of_it(root: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    with pytest.raises(InputError, match=r"notes\.md: notes cannot be read"):
        write_card(root, None, notes=notes)
    notes.write_text("## Data and licence\n\nPhantoms {of mine}.\n")
    card = write_card(root, None, notes=notes).read_text()
    assert "Phantoms {of mine}." in card
    assert "not documented" not in card


def test_an_evaluation_of_another_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run it again"):
        write_card(root, evaluation(tmp_path / "eval", "0" * 16))


def test_a_missing_evaluation_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected routes\.json"):
        write_card(root, tmp_path)
    folder = evaluation(tmp_path / "eval", checkpoint_hash(root))
    (folder / "joint.json").unlink()
    with pytest.raises(InputError, match=r"expected joint\.json"):
        write_card(root, folder)
