from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from xgem.judges.chexbert import HEADS, load_chexbert
from xgem.labels.vocabulary import CHEXPERT_CLASSES
from xgem.types import CheckpointError, NotComputed

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "heart", "lungs", "clear", "large", "no", "##s", "effusion", "."]


def _bert() -> BertModel:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(WORDS),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=1,
        intermediate_size=32,
        max_position_embeddings=12,
    )
    return BertModel(config).eval()


def _state() -> dict[str, torch.Tensor]:
    """A tiny random BERT under the published checkpoint's keys, the old buffer among them."""
    state = {f"module.bert.{name}": value for name, value in _bert().state_dict().items()}
    state["module.bert.embeddings.position_ids"] = torch.arange(12)[None]
    generator = torch.Generator().manual_seed(3)
    for k in range(14):
        classes = 2 if k == 13 else 4
        state[f"module.linear_heads.{k}.weight"] = torch.randn(classes, 64, generator=generator)
        state[f"module.linear_heads.{k}.bias"] = torch.randn(classes, generator=generator)
    return state


def _save(folder: Path, state: Any, **more: Any) -> tuple[Path, Path]:
    torch.save({"epoch": 8, "model_state_dict": state, **more}, folder / "chexbert.pth")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder / "chexbert.pth", folder / "vocab.txt"


def test_labels_are_those_of_the_heads_on_the_first_token(tmp_path: Path) -> None:
    state = _state()
    labeller = load_chexbert(*_save(tmp_path, state))
    labels = labeller.label(["Heart\n large .", "lungs clear . no effusion"])
    bert = _bert()
    with torch.no_grad():
        first = bert(torch.tensor([[2, 5, 8, 12, 3]])).last_hidden_state[0, 0]
    meaning = [math.nan, 1, 0, -1]
    for k, name in enumerate(HEADS):
        logits = state[f"module.linear_heads.{k}.weight"] @ first + state[f"module.linear_heads.{k}.bias"]
        found = labels[0, CHEXPERT_CLASSES.index(name)]
        np.testing.assert_equal(found, meaning[int(logits.argmax())])
    assert len({str(value) for value in labels.ravel()}) == 4  # all four kinds occur


def test_a_label_does_not_depend_on_the_reports_beside_it(tmp_path: Path) -> None:
    labeller = load_chexbert(*_save(tmp_path, _state()))
    texts = ["heart", "lungs clear . no effusion . heart large", "", "heart " * 50, "heart"]
    together = labeller.label(texts)
    np.testing.assert_array_equal(together, np.vstack([labeller.label([text]) for text in texts]))
    np.testing.assert_array_equal(together[0], together[4])


def test_what_the_heads_say_is_what_is_labelled(tmp_path: Path) -> None:
    state = _state()
    for k in range(14):
        state[f"module.linear_heads.{k}.weight"].zero_()
        state[f"module.linear_heads.{k}.bias"] = torch.eye(4)[k % 4] if k < 13 else torch.tensor([0.0, 1.0])
    row = load_chexbert(*_save(tmp_path, state)).label(["heart"])[0]
    by_class = dict(zip(CHEXPERT_CLASSES, row, strict=True))
    assert math.isnan(by_class["Enlarged Cardiomediastinum"])
    assert [by_class[name] for name in ("Cardiomegaly", "Lung Opacity", "Lung Lesion", "No Finding")] == [1, 0, -1, 1]


def test_missing_files_are_a_reason_not_a_failure(tmp_path: Path) -> None:
    checkpoint, vocab = _save(tmp_path, _state())
    for given in ((None, vocab), (checkpoint, None), (tmp_path / "none.pth", vocab)):
        with pytest.raises(NotComputed, match="is not"):
            load_chexbert(*given)


def test_a_checkpoint_with_a_wrong_tensor_is_refused_by_name(tmp_path: Path) -> None:
    state = _state()
    cases = {
        "linear_heads.13.weight": state | {"module.linear_heads.13.weight": torch.zeros(4, 64)},
        "linear_heads.4.bias": {key: one for key, one in state.items() if key != "module.linear_heads.4.bias"},
        "linear_heads.14.bias": state | {"module.linear_heads.14.bias": torch.zeros(4)},
    }
    for name, broken in cases.items():
        with pytest.raises(CheckpointError, match=name):
            load_chexbert(*_save(tmp_path, broken))


def test_a_vocabulary_of_another_size_is_refused(tmp_path: Path) -> None:
    checkpoint, vocab = _save(tmp_path, _state())
    vocab.write_text("\n".join(WORDS[:-1]))
    with pytest.raises(CheckpointError, match="12 word pieces"):
        load_chexbert(checkpoint, vocab)


class _Harmful:
    def __reduce__(self):
        return (print, ("run",))


def test_nothing_in_a_checkpoint_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(CheckpointError, match="without running code"):
        load_chexbert(*_save(tmp_path, _state(), extra=_Harmful()))
    assert "run" not in capsys.readouterr().out
