"""The model card: every number in it comes from the checkpoint or its evaluation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from xgem.checkpoints.store import checkpoint_hash
from xgem.configs.preset import load_preset
from xgem.convert.random_init import random_checkpoint
from xgem.eval.card import write_card
from xgem.types import InputError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("model") / "random"
    random_checkpoint(root, load_preset("debug"))
    return root


def evaluation(folder: Path, checkpoint: str) -> Path:
    folder.mkdir()
    for name, row in (("routes", "F->L"), ("joint", "T->F+L")):
        record = {"settings": {"model": {"name": "x", "hash": checkpoint}}}
        (folder / f"{name}.json").write_text(json.dumps(record))
        (folder / f"{name}.md").write_text(f"| route | n |\n|---|---|\n| {row} | 340 |\n")
    return folder


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
    for row in ("| F->L | 340 |", "| T->F+L | 340 |"):
        assert row in card
        assert row in text


def test_families_of_measures_go_into_the_card_and_not_into_readme(root: Path, tmp_path: Path) -> None:
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    measured = evaluation(tmp_path / "eval", checkpoint_hash(root))
    (measured / "all.json").write_text((measured / "routes.json").read_text())
    (measured / "all.md").write_text("### Privacy\n\n| measure | value |\n|---|---|\n| pixel distance | 17.5 |\n")
    card = write_card(root, measured, readme=readme).read_text()
    assert "| pixel distance | 17.5 |" in card
    assert "| F->L | 340 |" in card
    assert "pixel distance" not in readme.read_text()
    (measured / "all.json").write_text(json.dumps({"settings": {"model": {"hash": "another"}}}))
    with pytest.raises(InputError, match=r"all\.json: measured checkpoint another"):
        write_card(root, measured)


def test_what_is_missing_is_said(root: Path) -> None:
    card = write_card(root, None).read_text()
    assert "has not been measured" in card
    assert "Nobody has written down" in card


def test_notes_become_part_of_it(root: Path, tmp_path: Path) -> None:
    notes = tmp_path / "notes.md"
    with pytest.raises(InputError, match=r"notes\.md: notes cannot be read"):
        write_card(root, None, notes=notes)
    notes.write_text("## Data and licence\n\nPhantoms {of mine}.\n")
    card = write_card(root, None, notes=notes).read_text()
    assert "Phantoms {of mine}." in card
    assert "Nobody has written down" not in card


def test_an_evaluation_of_another_checkpoint_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run it again"):
        write_card(root, evaluation(tmp_path / "eval", "0" * 16))


def test_a_missing_evaluation_is_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"routes\.md"):
        write_card(root, tmp_path)
    folder = evaluation(tmp_path / "eval", checkpoint_hash(root))
    (folder / "joint.md").unlink()
    with pytest.raises(InputError, match=r"joint\.md"):
        write_card(root, folder)
