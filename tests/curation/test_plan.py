"""Plans: what is not valid is named in one line."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

from xgem.curation.plan import CurationPlan, read_plan
from xgem.curation.run import curate
from xgem.types import ConfigError, DataError

GOOD: dict[str, Any] = {"name": "set", "sources": [{"name": "ours", "manifest": "ours.parquet"}]}


def written(folder: Path, **fields: Any) -> Path:
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **fields}), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sources": []}, "sources: Tuple should have at least 1 item"),
        ({"sources": [{"name": "nhi", "folder": "x"}]}, "unknown source 'nhi'; did you mean nih? expected one of "),
        ({"sources": [{"name": "a"}]}, "source 'a': expected one of folder and manifest"),
        ({"sources": [{"name": "a", "manifest": "m", "options": {"b": 1}}]}, "options are those of a folder"),
        ({"sources": [{"name": "a", "manifest": "m"}] * 2}, "sources: 'a' is there twice"),
        ({"contents": {}}, "contents: unknown, did you mean content?"),
        ({"content": {"rotatet": "fix"}}, "content.rotatet: unknown, did you mean rotated?"),
        ({"content": {"not_chest": "fix"}}, "content.not_chest: Input should be 'drop' or 'note'"),
        ({"describe": {"checker": {"base_url": "http://a/v1", "model": "m"}}}, "checker without a rewriter"),
        (
            {"describe": {"rewriter": {"base_url": "http://a/v1", "model": "m", "key": 1}}},
            "describe.rewriter.key: unknown",
        ),
        (
            {"content": {"endpoint": {"base_url": "http://a/v1", "model": "m", "api_key": "secret"}}},
            "content.endpoint.api_key: unknown, did you mean api_key_env?",
        ),
        ({"content": {"endpoint": {"base_url": "http://key@a/v1", "model": "m"}}}, "expected an address without a key"),
        ({"content": {"least_quality": 3}}, "least_quality without an endpoint: nothing grades images"),
        ({"duplicates": {"correlation": 2}}, "duplicates.correlation: Input should be less than or equal to 1"),
    ],
)
def test_bad_plans(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read_plan(written(tmp_path, **fields))
    assert message in str(raised.value)
    assert str(raised.value).startswith(str(tmp_path / "plan.yaml"))
    assert "\n" not in str(raised.value)


def test_what_does_not_change_the_result_does_not_change_its_hash(tmp_path: Path) -> None:
    def sha(**fields: Any) -> str:
        return read_plan(written(tmp_path, **fields)).sha256({"ours": "1"})

    endpoint = {"base_url": "http://a/v1", "model": "m"}
    assert sha(describe={"rewriter": endpoint}) == sha(describe={"rewriter": {**endpoint, "base_url": "http://b/v1"}})
    assert sha(describe={"rewriter": endpoint}) != sha(describe={"rewriter": {**endpoint, "model": "n"}})
    assert sha() != sha(content={"judge": False})
    seen = sha(content={"endpoint": endpoint})
    assert seen == sha(content={"endpoint": {**endpoint, "base_url": "http://b/v1", "api_key_env": "KEY"}})
    assert seen != sha(content={"endpoint": {**endpoint, "model": "n"}})


@pytest.mark.parametrize("name", ["openchest", "debug"])
def test_plans_that_ship_are_valid(name: str) -> None:
    plan = read_plan(Path(str(files("xgem.configs") / "curation" / f"{name}.yaml")))
    assert plan.name == name


@pytest.mark.parametrize(
    ("source", "what"), [({"folder": "nowhere"}, "folder"), ({"manifest": "no.parquet"}, "manifest")]
)
def test_a_source_that_is_not_there_leaves_nothing_behind(source: dict[str, str], what: str, tmp_path: Path) -> None:
    place = {kind: str(tmp_path / name) for kind, name in source.items()}
    plan = CurationPlan.model_validate({"name": "one", "sources": [{"name": "nih", **place}]})
    with pytest.raises(DataError, match=f"source nih: no such {what} "):
        curate(plan, tmp_path / "out")
    assert not (tmp_path / "out").exists()
