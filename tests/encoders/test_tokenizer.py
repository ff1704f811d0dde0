"""The tokenizers that small presets train on their own reports."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from xgem.encoders.tokenizer import BOS, EOS, PAD, train_tokenizer

TEXTS = ["No acute disease.", "Large left pleural effusion.", "Heart size is normal. Clear lungs."] * 3


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, 400)


def test_special_tokens_stand_around_every_text(tokenizer: PreTrainedTokenizerFast) -> None:
    assert [tokenizer.convert_tokens_to_ids(token) for token in (PAD, BOS, EOS)] == [0, 1, 2]
    ids = tokenizer(["Clear lungs.", "No acute disease of the chest."], padding=True)["input_ids"]
    for row in ids:
        inside = [i for i in row if i != 0]
        assert inside[0] == 1
        assert inside[-1] == 2
        assert row == inside + [0] * (len(row) - len(inside))


@given(st.text(alphabet=st.characters(exclude_categories=("Cs",)), max_size=40))
def test_any_text_comes_back(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    if any(token in text for token in (PAD, BOS, EOS)):
        return
    ids = tokenizer(text)["input_ids"]
    assert str(tokenizer.decode(ids, skip_special_tokens=True)).removeprefix(" ") == text.removeprefix(" ")


def test_same_texts_give_the_same_tokenizer() -> None:
    one, other = train_tokenizer(TEXTS, 300), train_tokenizer(iter(TEXTS), 300)
    assert one.get_vocab() == other.get_vocab()
    assert len(one) <= 300


def test_case_is_kept_or_folded(tokenizer: PreTrainedTokenizerFast) -> None:
    folding = train_tokenizer(TEXTS, 400, lowercase=True)
    assert folding("CLEAR Lungs.")["input_ids"] == folding("clear lungs.")["input_ids"]
    assert tokenizer("CLEAR Lungs.")["input_ids"] != tokenizer("clear lungs.")["input_ids"]


def test_it_is_the_same_after_saving(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    tokenizer.save_pretrained(str(tmp_path / "tokenizer"))
    loaded = AutoTokenizer.from_pretrained(str(tmp_path / "tokenizer"), local_files_only=True)
    text = "Large left effusion; heart normal."
    assert loaded(text)["input_ids"] == tokenizer(text)["input_ids"]
    assert (loaded.pad_token, loaded.bos_token, loaded.eos_token) == (PAD, BOS, EOS)
