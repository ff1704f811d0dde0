"""Makes the MobileNetV2 that ships with xgem from the published 8-bit TensorFlow Lite file.

    pip install tflite                # reads the file; ai-edge-litert, if it is there, checks the result
    python benchmarks/mobilenet.py mobilenet_v2_1.0_224_quant.tflite --out xgem/assets/judges/mobilenet

Weights are copied as the 8 bits that they are, with scale and zero point of each layer; the classifier at the end is
left out. With ai-edge-litert, and ``--images DIR`` for pictures in place of noise, it prints how well the features
computed in floats agree with those of the 8-bit interpreter: Pearson's r and the largest difference.
"""

from __future__ import annotations

import argparse
import importlib
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

from xgem.judges.mobilenet import DIM, QUANTISATION, SIZE, as_input, load_mobilenet

CONVOLUTIONS = ("CONV_2D", "DEPTHWISE_CONV_2D")
POOLED = "MobilenetV2/Logits/AvgPool"


def tensors_of(file: Path) -> dict[str, torch.Tensor]:
    """Weights (uint8, as torch lays them out), biases (float32), scales and zero points, in the order of the graph."""
    tflite: Any = importlib.import_module("tflite")
    model = tflite.Model.GetRootAsModel(file.read_bytes(), 0)
    graph = model.Subgraphs(0)
    kinds = [getattr(tflite.BuiltinOperator, kind) for kind in CONVOLUTIONS]

    def values(place: int, kind: type[np.generic]) -> tuple[NDArray[Any], float, int]:
        tensor = graph.Tensors(place)
        scale = tensor.Quantization()
        raw = model.Buffers(tensor.Buffer()).DataAsNumpy().tobytes()
        shaped = np.frombuffer(raw, dtype=kind).reshape(tensor.ShapeAsNumpy())
        return shaped, float(scale.ScaleAsNumpy()[0]), int(scale.ZeroPointAsNumpy()[0]) if kind is np.uint8 else 0

    state: dict[str, torch.Tensor] = {}
    scales: list[tuple[float, int]] = []
    for k in range(graph.OperatorsLength()):
        operator = graph.Operators(k)
        code = model.OperatorCodes(operator.OpcodeIndex()).DeprecatedBuiltinCode()
        if code not in kinds:
            continue
        weight, scale, zero = values(operator.Inputs(1), np.uint8)
        if len(weight) == 1001:  # ImageNet's classes
            break
        bias, step, _ = values(operator.Inputs(2), np.int32)
        depthwise = code == kinds[1]
        layout = (3, 0, 1, 2) if depthwise else (0, 3, 1, 2)  # (1, h, w, c) or (out, h, w, in) -> (out, in, h, w)
        state[f"{len(scales)}.weight"] = torch.from_numpy(weight.transpose(layout).copy())
        state[f"{len(scales)}.bias"] = torch.from_numpy((bias.astype(np.float64) * step).astype(np.float32))
        scales.append((scale, zero))
    return {**state, QUANTISATION: torch.tensor(scales, dtype=torch.float64)}


def pictures(folder: Path | None, count: int) -> NDArray[np.uint8]:
    """(n, 224, 224): the first images of a folder, or noise at several scales."""
    from PIL import Image

    if folder is None:
        rng = np.random.default_rng(0)
        small = [rng.integers(0, 256, (2 ** (2 + k % 6),) * 2, dtype=np.uint8) for k in range(count)]
        return np.stack([np.asarray(Image.fromarray(one).resize((SIZE, SIZE))) for one in small])
    files = sorted(file for file in folder.iterdir() if file.suffix in (".jpg", ".png"))[:count]
    return np.stack([np.asarray(Image.open(file).convert("L").resize((SIZE, SIZE))) for file in files])


def interpreted(file: Path, images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(n, 1280) pooled features by the 8-bit interpreter."""
    litert: Any = importlib.import_module("ai_edge_litert.interpreter")
    # No delegate: it may fuse what is read here
    options = {"experimental_op_resolver_type": litert.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES}
    interpreter = litert.Interpreter(str(file), experimental_preserve_all_tensors=True, **options)
    interpreter.allocate_tensors()
    pooled = next(one for one in interpreter.get_tensor_details() if one["name"].startswith(POOLED))
    scale, zero = pooled["quantization"]
    found = []
    for image in images:
        interpreter.set_tensor(interpreter.get_input_details()[0]["index"], np.repeat(image[None, :, :, None], 3, 3))
        interpreter.invoke()
        found.append((interpreter.get_tensor(pooled["index"]).reshape(DIM).astype(np.float64) - zero) * scale)
    return np.stack(found)


def agreement(file: Path, weights: Path, images: NDArray[np.uint8]) -> dict[str, Any]:
    """How the shipped network's features compare with the interpreter's."""
    with torch.inference_mode():
        ours = load_mobilenet(weights)(as_input(torch.from_numpy(images))).double().numpy()
    theirs = interpreted(file, images)
    each = [np.corrcoef(a, b)[0, 1] for a, b in zip(ours, theirs, strict=True)]
    return {
        "n": len(images),
        "r, all": round(float(np.corrcoef(ours.ravel(), theirs.ravel())[0, 1]), 4),
        "r, lowest of an image": round(float(min(each)), 4),
        "largest difference": round(float(np.abs(ours - theirs).max()), 3),
        "mean feature": round(float(theirs.mean()), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--count", type=int, default=64)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    weights = options.out / "model.safetensors"
    save_file(tensors_of(options.file), weights)
    print(f"{weights}: {weights.stat().st_size / 1e6:.2f} MB")
    if find_spec("ai_edge_litert"):
        print(json.dumps(agreement(options.file, weights, pictures(options.images, options.count)), indent=2))


if __name__ == "__main__":
    main()
