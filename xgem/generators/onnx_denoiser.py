"""UNet denoisers run by ONNX Runtime: about twice as fast as PyTorch on a CPU, with the same output up to rounding."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from xgem.types import Context, InputError

_INPUTS: Final = {
    "z": {0: "b"},
    "t": {0: "b"},
    "tokens": {0: "b", 1: "n"},
    "mask": {0: "b", 1: "n"},
    "pooled": {0: "b"},
}
_COUPLED: Final = {"environment": {0: "b", 1: "m"}, "attends": {0: "b"}}


class Coupling(Protocol):
    """What lets a denoiser attend to other outputs (``xgem.alignment.cross_attention.EnvironmentAttentions``)."""

    def weighted(self, denoiser: nn.Module, tokens: Tensor, attends: Tensor) -> AbstractContextManager[None]:
        """Within this context, row k of ``denoiser``'s batch attends to tokens (b, m, d), weighted by attends (b,)."""
        ...


class _Attended(NamedTuple):
    coupling: Coupling
    tokens: Tensor  # (b', m, d)
    guided: bool


class _Traced(nn.Module):
    """A denoiser with tensors alone as arguments, as an export takes it."""

    def __init__(self, net: nn.Module, coupling: Coupling | None) -> None:
        super().__init__()
        self.net, self.coupling = net, coupling

    def forward(self, z: Tensor, t: Tensor, tokens: Tensor, mask: Tensor, pooled: Tensor, *coupled: Tensor) -> Tensor:
        context = Context(pooled=pooled, tokens=tokens, mask=mask)
        if self.coupling is None:
            return self.net(z, t, context)
        with self.coupling.weighted(self.net, *coupled):
            return self.net(z, t, context)


def onnx_runtime() -> Any:
    """The module ``onnxruntime``; InputError says what to install where it or ``onnx`` is missing."""
    try:
        import onnx  # noqa: F401 (what torch.onnx writes with)
        import onnxruntime
    except ImportError as error:
        raise InputError(
            f"compiled UNets need the package {error.name}, which is not installed: install xgem[onnx]"
        ) from error
    return onnxruntime


class OnnxDenoiser(nn.Module):
    """In place of the denoiser ``net``, with the same arguments: exported in memory at its first call, for inference.

    For float32 on the CPU. Batches and contexts may have any size. An export takes about a second, and one more for
    joint outputs. ``net`` is no submodule: nothing caches or hooks it while it is traced.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._net = (net,)
        self._attended: _Attended | None = None
        self._sessions: dict[Coupling | None, Any] = {}
        onnx_runtime()

    @contextmanager
    def attending(self, coupling: Coupling, tokens: Tensor, *, guided: bool) -> Iterator[None]:
        """Within this block the denoiser attends to ``tokens`` (b', m, d); the second half of a batch of 2 b' rows,
        that without prompts, to the same ones, or if ``guided`` to none."""
        self._attended = _Attended(coupling, tokens, guided)
        try:
            yield
        finally:
            self._attended = None

    def forward(self, z: Tensor, t: Tensor, context: Context) -> Tensor:
        inputs = [z, t.expand(z.shape[0]), context.tokens, context.mask, context.pooled]
        coupling = None
        if self._attended is not None:
            coupling, tokens, guided = self._attended
            repeats = len(z) // len(tokens)
            attends = z.new_ones(len(z))
            attends[len(tokens) :] = float(not guided)
            inputs += [tokens.repeat(repeats, 1, 1), attends]
        if coupling not in self._sessions:
            self._sessions[coupling] = self._session(coupling, inputs)
        session = self._sessions[coupling]
        names = (value.name for value in session.get_inputs())
        given = dict(zip((*_INPUTS, *_COUPLED), inputs, strict=False))
        (prediction,) = session.run(None, {name: given[name].numpy() for name in names})
        return torch.from_numpy(prediction)

    def _session(self, coupling: Coupling | None, inputs: list[Tensor]) -> Any:
        """The denoiser, exported with these inputs as an example."""
        runtime = onnx_runtime()
        axes = _INPUTS if coupling is None else {**_INPUTS, **_COUPLED}
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with TemporaryDirectory() as folder, warnings.catch_warnings():
            # The tracer warns of every check of a shape, and that it is not the newest one, which takes no hooks
            warnings.simplefilter("ignore")
            file = Path(folder) / "denoiser.onnx"
            torch.onnx.export(
                _Traced(self._net[0], coupling).eval(),
                tuple(value.clone() for value in inputs),
                file,
                input_names=list(axes),
                output_names=["prediction"],
                dynamic_axes=axes,
                dynamo=False,
            )
            return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
