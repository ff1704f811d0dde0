"""Presets and plans from YAML: what stands twice is refused and named, what is no YAML says where."""

from __future__ import annotations

from pathlib import Path

import pytest

from xgem.cohort.plan import read_plan
from xgem.configs.preset import load_preset
from xgem.configs.yaml_text import parse_yaml, read_yaml
from xgem.types import ConfigError

CASES = Path(__file__).parents[1] / "cases" / "plans"


@pytest.mark.parametrize(
    ("read", "name", "message"),
    [
        (read_plan, "dup_balanced.yaml", "line 9: duplicate key 'balanced' (first on line 6): keep one of them"),
        (read_plan, "dup_key.yaml", "line 9: duplicate key 'seed' (first on line 3): keep one of them"),
        (load_preset, "preset_dup.yml", "line 57: duplicate key 'steps' (first on line 57): keep one of them"),
    ],
)
def test_a_key_that_stands_twice_in_a_file_is_named(read: object, name: str, message: str) -> None:
    assert callable(read)
    with pytest.raises(ConfigError) as caught:
        read(CASES / name)
    assert str(caught.value) == f"{CASES / name}: not valid YAML: {message}"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\na: 1", "line 2: duplicate key 'a'"),  # even where both say the same
        ("a: 1\n'a': 2", "line 2: duplicate key 'a'"),
        ("- {b: 1, b: 2}", "line 1: duplicate key 'b'"),
        ("a: {b: {c: 1,\n  d: 2,\n  c: 3}}", "line 3: duplicate key 'c'"),
        ("a: &x {b: 1}\nc:\n  <<: *x\n  <<: *x", "line 4: duplicate key '<<'"),
        ("a: [", "line 1: "),
        ("a: b\n\tc: d", "line 2: "),
        ("a: *nobody", "line 1: found undefined alias 'nobody'"),
        ("a: 2026-13-40", "month must be in 1..12"),
        ("[" * 20_000, "recursion"),
        ("a: \x07", "special characters"),
        ("a: !!python/object/apply:os.system [ls]", "line 1: could not determine a constructor"),
    ],
)
def test_what_is_no_yaml_or_twofold_is_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_yaml(text, "here")
    assert str(caught.value).startswith("here: not valid YAML: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_merged_keys_may_be_overridden_and_repeated_elsewhere() -> None:
    text = "a: &x {b: 1, c: 2}\nd:\n  <<: *x\n  b: 3\ne:\n  <<: *x\n  b: 4\nf: *x\n1: one\n'1': text"
    assert parse_yaml(text, "here") == {
        "a": {"b": 1, "c": 2}, "d": {"b": 3, "c": 2}, "e": {"b": 4, "c": 2}, "f": {"b": 1, "c": 2}, 1: "one",
        "1": "text",
    }  # fmt: skip


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_yaml(tmp_path / "none.yaml")
    (tmp_path / "latin.yaml").write_bytes("a: Größe".encode("latin-1"))
    for path in (tmp_path / "latin.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            read_yaml(path)


# ------------------------------------------------------------------------------------------------------- extending


def test_a_preset_that_extends_another_changes_what_it_names(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("extends: debug\nname: mine\nsampling: {sampler: ddim}\n", encoding="utf-8")
    (tmp_path / "again.yaml").write_text("extends: mine.yaml\nname: again\n", encoding="utf-8")
    debug, mine, again = load_preset("debug"), load_preset(tmp_path / "mine.yaml"), load_preset(tmp_path / "again.yaml")
    assert (mine.name, mine.sampling.sampler, mine.sampling.guidance_scale) == ("mine", "ddim", {})
    assert mine.model_copy(update={"name": debug.name, "sampling": debug.sampling}) == debug
    assert again == mine.model_copy(update={"name": "again"})
    assert "extends" not in mine.model_dump()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": "extends: a.yaml"}, "extends itself"),
        ({"a": "extends: b.yaml", "b": "extends: a.yaml"}, "extends itself"),
        ({"a": "extends: nobody"}, "unknown preset 'nobody'"),
        ({"a": "extends: b.yaml"}, "does not exist"),
        ({"a": "extends: b.yaml", "b": "- list"}, "b.yaml: expected the fields of a preset, got list"),
        ({"a": "extends: debug\nname: a\ncolour: red"}, "colour: unknown; expected one of"),
    ],
)
def test_what_cannot_be_extended(files: dict[str, str], message: str, tmp_path: Path) -> None:
    for name, text in files.items():
        (tmp_path / f"{name}.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=message) as caught:
        load_preset(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)
