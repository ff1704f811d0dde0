"""The checkpoint folder: what is written comes back, and nothing that was tampered with does."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from xgem.checkpoints.component import Component
from xgem.checkpoints.store import (
    INDEX_NAME,
    checkpoint_hash,
    component_hash,
    copy_checkpoint,
    file_sha256,
    init_checkpoint,
    load_component,
    read_index,
    save_component,
    verify,
)
from xgem.checkpoints.weights import parse_size, read_weights, write_weights
from xgem.configs.codecs import ImageVAEConfig
from xgem.generators.image_vae import ImageVAE
from xgem.types import CheckpointError, ConfigError, OutputError

TINY = ImageVAEConfig(image_size=16, block_out_channels=(8, 8), latent_channels=2, norm_num_groups=4)
PRESET: dict[str, Any] = {
    "name": "two-codecs",
    "components": {"first": TINY.model_dump(mode="json"), "second": TINY.model_dump(mode="json")},
    "train": {"image-vae": {"steps": 1}},
}


def vae(seed: int) -> ImageVAE:
    torch.manual_seed(seed)
    return ImageVAE(TINY)


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoint") / "two"
    init_checkpoint(root, PRESET)
    save_component(root, "first", vae(1))
    save_component(root, "second", vae(2))
    return root


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    shutil.copytree(pristine, tmp_path / "copy")
    return tmp_path / "copy"


def rehash(root: Path, file: str, name: str = "first") -> None:
    """Makes the index agree with a file that a test has altered, as a careful forger would."""
    index = json.loads((root / INDEX_NAME).read_text())
    index["components"][name]["files"][file] = file_sha256(root / name / file)
    (root / INDEX_NAME).write_text(json.dumps(index))


def assert_same(one: nn.Module, other: nn.Module) -> None:
    state = other.state_dict()
    assert state.keys() == one.state_dict().keys()
    for key, value in one.state_dict().items():
        torch.testing.assert_close(value, state[key], rtol=0, atol=0)


def test_the_same_weights_make_the_same_files(tmp_path: Path) -> None:
    files = set()
    for size in ["2GB"] * 6 + ["20KB"] * 6:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        write_weights(folder, "x", vae(1).state_dict(), max_shard_size=size)
        files.add(b"".join(path.read_bytes() for path in sorted(folder.glob("*.safetensors"))))
        names = [path.name for path in folder.iterdir()]
        read = {key: value for key, (value, _) in read_weights(folder, names).items()}
        assert all(torch.equal(value, read[key]) for key, value in vae(1).state_dict().items())
    assert len(files) == 2


def test_a_field_that_came_later_makes_no_other_configuration(root: Path) -> None:
    """A checkpoint of before the field was there goes on where the preset leaves it at its default."""
    index = json.loads((root / INDEX_NAME).read_text())
    del index["preset"]["components"]["first"]["shortcut"]
    (root / INDEX_NAME).write_text(json.dumps(index))
    assert set(init_checkpoint(root, PRESET).components) == {"first", "second"}


def test_a_component_comes_back_bit_for_bit(pristine: Path) -> None:
    verify(pristine)
    loaded = load_component(pristine, "first")
    assert isinstance(loaded, ImageVAE)
    assert not loaded.training
    assert loaded.config == TINY
    assert_same(vae(1), loaded)


def test_loading_leaves_the_global_random_state_alone(pristine: Path) -> None:
    before = torch.get_rng_state()
    load_component(pristine, "first")
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_stored_in_half_are_float32_again_when_loaded(root: Path, dtype: torch.dtype) -> None:
    save_component(root, "first", vae(1), dtype=dtype)
    stored = load_file(root / "first" / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {dtype}
    loaded = load_component(root, "first").state_dict()
    for key, value in vae(1).state_dict().items():
        assert loaded[key].dtype == torch.float32
        torch.testing.assert_close(loaded[key], value.to(dtype).float(), rtol=0, atol=0)
    assert next(load_component(root, "first", dtype=torch.bfloat16).parameters()).dtype == torch.bfloat16


def test_a_weight_that_half_precision_cannot_hold_is_refused(root: Path) -> None:
    module = vae(1)
    with torch.no_grad():
        next(module.parameters()).fill_(1e9)
    before = checkpoint_hash(root)
    with pytest.raises(CheckpointError, match="does not fit"):
        save_component(root, "first", module, dtype=torch.float16)
    assert checkpoint_hash(root) == before
    verify(root)


def test_shards_hold_what_one_file_holds(root: Path) -> None:
    save_component(root, "first", vae(1), max_shard_size="8KB")
    files = set(read_index(root).components["first"].files)
    assert "model.safetensors" not in files
    assert "model.safetensors.index.json" in files
    shards = sorted(file for file in files if file.endswith(".safetensors"))
    assert len(shards) > 2
    assert shards[0] == f"model-00001-of-{len(shards):05d}.safetensors"
    weight_map = json.loads((root / "first" / "model.safetensors.index.json").read_text())["weight_map"]
    assert weight_map.keys() == vae(1).state_dict().keys()
    assert_same(vae(1), load_component(root, "first"))


def test_saving_again_leaves_no_file_of_the_earlier_one(root: Path) -> None:
    save_component(root, "first", vae(1), max_shard_size="8KB")
    save_component(root, "first", vae(3))
    assert sorted(path.name for path in (root / "first").iterdir()) == ["config.json", "model.safetensors"]
    assert sorted(path.name for path in root.iterdir()) == ["first", INDEX_NAME, "second"]
    verify(root)


def test_what_a_killed_save_left_behind_goes_with_the_next_one(root: Path) -> None:
    (root / ".first.abc").mkdir()
    (root / ".first.abc" / "model.safetensors").write_text("half")
    verify(root)
    save_component(root, "first", vae(3))
    assert sorted(path.name for path in root.iterdir()) == ["first", INDEX_NAME, "second"]


class Tied(Component):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_stored_once_and_come_back_under_both_names(tmp_path: Path) -> None:
    module = Tied()
    write_weights(tmp_path, "tied", module.state_dict())
    assert len(load_file(tmp_path / "model.safetensors")) == 1
    found = read_weights(tmp_path, ["model.safetensors"])
    assert {key: value.tolist() for key, (value, _) in found.items()} == {
        key: value.tolist() for key, value in module.state_dict().items()
    }


@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=12),
    limit=st.integers(1, 200),
)
def test_any_sharding_keeps_every_weight(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    state = {f"w{number}": torch.arange(size, dtype=torch.float32) for number, size in enumerate(sizes)}
    write_weights(folder, "any", state, max_shard_size=limit)
    found = read_weights(folder, [path.name for path in folder.iterdir()])
    assert {key: value.tolist() for key, (value, _) in found.items()} == {k: v.tolist() for k, v in state.items()}


@pytest.mark.parametrize(("text", "size"), [("2GB", 2 * 10**9), ("1.5 MB", 1_500_000), ("1KiB", 1024), (7, 7)])
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


def test_a_size_that_is_none() -> None:
    with pytest.raises(ConfigError, match="expected bytes"):
        parse_size("much")


# ------------------------------------------------------------------------------------------------ tampering


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("harm", [Path.unlink, truncate, flip], ids=["missing", "truncated", "flipped"])
def test_a_harmed_file_is_named(root: Path, file: str, harm: Any) -> None:
    harm(root / "first" / file)
    for use in (verify, lambda root: load_component(root, "first")):
        with pytest.raises(CheckpointError, match=f"first/{file}"):
            use(root)
    load_component(root, "second")


def test_swapped_components_are_refused(root: Path) -> None:
    (root / "first").rename(root / "third")
    (root / "second").rename(root / "first")
    (root / "third").rename(root / "second")
    with pytest.raises(CheckpointError, match=r"first/model\.safetensors: altered, truncated or swapped"):
        load_component(root, "first")


def test_a_missing_component_is_refused(root: Path) -> None:
    shutil.rmtree(root / "first")
    with pytest.raises(CheckpointError, match="folder is missing"):
        verify(root)
    with pytest.raises(CheckpointError, match=r"no component 'other'; it has: first, second"):
        load_component(root, "other")


def test_a_checkpoint_that_lacks_a_component_of_its_preset_is_incomplete(tmp_path: Path) -> None:
    init_checkpoint(tmp_path / "new", PRESET)
    save_component(tmp_path / "new", "first", vae(1))
    with pytest.raises(CheckpointError, match="components second are missing"):
        verify(tmp_path / "new")


def test_a_file_that_nobody_listed_is_refused(root: Path) -> None:
    (root / "first" / "added_tokens.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"added_tokens\.json: not listed"):
        load_component(root, "first")


def alter_weights(root: Path, change: Any) -> None:
    path = root / "first" / "model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path, metadata={"tied": "{}"})
    rehash(root, "model.safetensors")


def test_a_weight_of_another_shape_is_named(root: Path) -> None:
    key = next(iter(vae(1).state_dict()))
    alter_weights(root, lambda state: state.update({key: torch.zeros(3)}))
    with pytest.raises(CheckpointError, match=rf"weight '{key}' has shape \(3,\)"):
        load_component(root, "first")


def test_a_missing_and_an_unknown_weight_are_named(root: Path) -> None:
    key = next(iter(vae(1).state_dict()))
    alter_weights(root, lambda state: state.pop(key))
    with pytest.raises(CheckpointError, match=f"weight '{key}' is missing"):
        load_component(root, "first")
    alter_weights(root, lambda state: state.update({"stranger": torch.zeros(3)}))
    with pytest.raises(CheckpointError, match="unexpected weight 'stranger'"):
        load_component(root, "first")


def test_weights_that_are_no_safetensors_are_never_unpickled(root: Path) -> None:
    torch.save({"w": torch.zeros(3)}, root / "first" / "model.safetensors")
    rehash(root, "model.safetensors")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        load_component(root, "first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "text_encoder"}, "config.json"),
        ({"latent_channels": "many"}, "latent_channels"),
        ({"surprise": 1}, "surprise"),
        ({"latent_channels": 3}, "has shape"),
    ],
)
def test_a_configuration_that_does_not_fit(root: Path, change: dict[str, Any], message: str) -> None:
    path = root / "first" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    rehash(root, "config.json")
    with pytest.raises(CheckpointError, match=message):
        load_component(root, "first")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "format is 'other'"),
        ({"format_version": 99}, "format_version is 99"),
        ({"components": []}, "JSON objects"),
        ({"components": {"../up": {"kind": "image_vae", "files": {}}}}, "not valid"),
        ({"components": {"a": {"kind": "image_vae", "files": {"../x": "0" * 64}}}}, "outside its folder"),
        ({"components": {"a": {"kind": "image_vae", "files": {"/x": "0" * 64}}}}, "outside its folder"),
        ({"components": {"a": {"kind": "image_vae", "files": {"x": "short"}}}}, "not a SHA-256"),
        ({"components": {"a": {"kind": "image_vae", "files": {}}}}, "lists no config.json"),
    ],
)
def test_an_index_that_is_not_valid(root: Path, change: dict[str, Any], message: str) -> None:
    index = json.loads((root / INDEX_NAME).read_text())
    (root / INDEX_NAME).write_text(json.dumps({**index, **change}))
    with pytest.raises(CheckpointError, match=message):
        read_index(root)


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        read_index(tmp_path / "none")
    with pytest.raises(CheckpointError, match=f"has no {INDEX_NAME}"):
        read_index(tmp_path)
    (tmp_path / INDEX_NAME).write_text("{")
    with pytest.raises(CheckpointError, match="cannot be read as JSON"):
        read_index(tmp_path)


# --------------------------------------------------------------------------------------- folders and hashes


def test_hashes_follow_the_weights_and_nothing_else(root: Path) -> None:
    whole, first, second = checkpoint_hash(root), component_hash(root, "first"), component_hash(root, "second")
    (root / "README.md").write_text("card")
    init_checkpoint(root, {**PRESET, "train": {"image-vae": {"steps": 2}}})
    save_component(root, "first", vae(1))
    assert (whole, first, second) == (checkpoint_hash(root), component_hash(root, "first"), second)
    save_component(root, "first", vae(9))
    assert checkpoint_hash(root) != whole
    assert component_hash(root, "first") != first
    assert component_hash(root, "second") == second


def test_a_preset_that_configures_a_stored_component_differently_is_refused(root: Path) -> None:
    other = {**PRESET, "components": {**PRESET["components"], "first": {"kind": "image_vae", "latent_channels": 4}}}
    with pytest.raises(CheckpointError, match="'first' has a different configuration"):
        init_checkpoint(root, other)
    assert len(read_index(root).components) == 2


def test_a_failed_save_changes_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = checkpoint_hash(root)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xgem.checkpoints.store.write_weights", fail)
    with pytest.raises(OutputError, match="No space left"):
        save_component(root, "first", vae(5))
    assert checkpoint_hash(root) == before
    verify(root)
    assert sorted(path.name for path in root.iterdir()) == ["first", INDEX_NAME, "second"]


def test_names_that_are_no_folders_are_refused(root: Path) -> None:
    with pytest.raises(CheckpointError, match="not valid"):
        save_component(root, "../up", vae(1))


def test_a_copy_is_the_same_checkpoint(root: Path, tmp_path: Path) -> None:
    (root / "README.md").write_text("card")
    copy_checkpoint(root, tmp_path / "deep" / "there")
    verify(tmp_path / "deep" / "there")
    assert checkpoint_hash(tmp_path / "deep" / "there") == checkpoint_hash(root)
    assert (tmp_path / "deep" / "there" / "README.md").read_text() == "card"
    copy_checkpoint(root, tmp_path / "half", dtype=torch.float16)
    verify(tmp_path / "half")
    assert load_file(tmp_path / "half" / "first" / "model.safetensors").popitem()[1].dtype == torch.float16


def test_a_copy_needs_a_whole_source_and_an_unused_target(root: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not an empty folder"):
        copy_checkpoint(root, root.parent)
    truncate(root / "second" / "model.safetensors")
    with pytest.raises(CheckpointError):
        copy_checkpoint(root, tmp_path / "there")
    assert not (tmp_path / "there").exists()
