"""Training that starts from another checkpoint's weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from xgem.checkpoint import init_checkpoint, load_component, read_index, save_component, verify
from xgem.data.cache import module_hash
from xgem.data.manifest import Manifest
from xgem.random_init import random_checkpoint
from xgem.train.corpus import Corpus
from xgem.train.loop import LoopOptions
from xgem.train.stages import STAGES, make_stage, run
from xgem.types import ConfigError

QUIET = LoopOptions(progress=False, tensorboard=False)


@pytest.fixture(scope="module")
def source(debug_preset: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint of random weights."""
    root = tmp_path_factory.mktemp("source") / "checkpoint"
    random_checkpoint(root, debug_preset, seed=3)
    return root


@pytest.mark.parametrize("name", [name for name in STAGES if name != "image-decoder"])  # it goes on from its folder
def test_a_stage_starts_from_the_given_weights(
    name: str, debug_preset: Any, corpora: tuple[Corpus, Corpus], source: Path
) -> None:
    fresh, again, started = (make_stage(name, debug_preset, *corpora, source, 0, init) for init in (None, None, source))
    assert fresh.fingerprint() == again.fingerprint() != started.fingerprint()
    for part, module in started.fresh.items():
        wanted = load_component(source, part)
        assert module_hash(module) == module_hash(wanted) != module_hash(fresh.fresh[part])
        for old in ("tokenizer", "decoder_tokenizer"):
            if hasattr(wanted, old):
                assert getattr(module, old).get_vocab() == getattr(wanted, old).get_vocab()


def test_one_stage_alone_gives_a_whole_checkpoint(debug_preset: Any, toy: Path, source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(["report"], debug_preset, Manifest.read(toy), out, QUIET, init=source)
    verify(out)
    changed = {
        name
        for name in read_index(source).components
        if module_hash(load_component(out, name)) != module_hash(load_component(source, name))
    }
    assert changed == {"report"}
    assert read_index(out).components.keys() == read_index(source).components.keys()


def test_another_architecture_is_refused(debug_preset: Any, toy: Path, source: Path, tmp_path: Path) -> None:
    wider = debug_preset.components["report"].model_copy(update={"width": 32})
    preset = debug_preset.model_copy(update={"components": debug_preset.components | {"report": wider}})
    with pytest.raises(ConfigError, match="'report' is of another architecture"):
        run(["report"], preset, Manifest.read(toy), tmp_path / "out", QUIET, init=source)


def test_components_that_are_there_already_stay(
    debug_preset: Any, debug_parts: dict[str, Any], toy: Path, source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    init_checkpoint(out, debug_preset)
    save_component(out, "image_vae", debug_parts["image_vae"])
    run(["report"], debug_preset, Manifest.read(toy), out, QUIET, init=source)
    assert module_hash(load_component(out, "image_vae")) == module_hash(debug_parts["image_vae"])
