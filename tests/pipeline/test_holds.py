"""What users of a pipeline rely on: threads, errors in callbacks, Ctrl-C, flat memory."""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.pipeline.conftest import NORMAL, QUICK, radiograph, same
from xgem.cli import main
from xgem.pipeline.pipeline import XgemPipeline


def test_threads_on_one_pipeline_get_identical_results(pipeline: XgemPipeline) -> None:
    inputs: list[dict[str, Any]] = [{"report": NORMAL}, {"lateral": radiograph()}, {}, {"report": "Edema."}] * 4

    def one(item: dict[str, Any]) -> Any:
        return pipeline(item, "frontal", seed=1, **QUICK).frontal[0]

    alone = [one(item) for item in inputs[:4]] * 4
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(one, inputs))
    assert all(map(same, together, alone))
    assert not same(alone[0], alone[1])


@pytest.mark.parametrize("error", [ValueError("stop"), KeyboardInterrupt()], ids=["error", "interrupt"])
def test_a_callback_that_raises_leaves_the_pipeline_as_it_was(pipeline: XgemPipeline, error: BaseException) -> None:
    before = pipeline({"report": NORMAL}, ["frontal", "lateral"], seed=1, **QUICK)

    def stop(_pipe: Any, step: int, _time: int, _values: Any) -> None:
        if step == 1:
            raise error

    with pytest.raises(type(error)) as raised:
        pipeline({"report": NORMAL}, ["frontal", "lateral"], seed=1, callback_on_step_end=stop, **QUICK)
    assert raised.value is error
    with ThreadPoolExecutor(1) as pool:  # the lock is free for other threads too
        again = pool.submit(pipeline, {"report": NORMAL}, ["frontal", "lateral"], seed=1, **QUICK).result(60)
    assert all(same(again.outputs[name][0], before.outputs[name][0]) for name in before)


@pytest.mark.parametrize("where", ["sampling", "writing"])
def test_an_interrupt_leaves_nothing_half_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    def stop(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    target = "xgem.generators.sampling.guided" if where == "sampling" else "xgem.pipeline.generation.file_sha256"
    monkeypatch.setattr(target, stop)
    command = ["generate", "--outputs", "frontal,report", "--model", str(checkpoint), "--num-inference-steps", "2"]
    assert main([*command, "--no-progress", "--out", str(tmp_path / "out")]) == 130
    assert capsys.readouterr().err.startswith("xgem: interrupted")
    assert not list(tmp_path.iterdir())


def test_memory_does_not_grow_with_calls(pipeline: XgemPipeline) -> None:
    def tensors() -> int:
        gc.collect()
        return sum(isinstance(one, torch.Tensor) for one in gc.get_objects())

    def call() -> None:
        pipeline({"lateral": radiograph()}, ["frontal", "report"], seed=1, **QUICK)

    call()
    before = tensors()
    for _ in range(4):
        call()
    assert tensors() == before
