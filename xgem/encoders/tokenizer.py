"""Byte-level BPE tokenizers, trained on the training split's reports."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS = "<pad>", "<s>", "</s>"


def train_tokenizer(texts: Iterable[str], vocab_size: int, *, lowercase: bool = False) -> PreTrainedTokenizerFast:
    """A BPE tokenizer that wraps every text as ``<s> text </s>``.

    Byte-level, so that any text can be encoded and decoded back. ``vocab_size`` is an upper bound: little text gives
    fewer merges. Deterministic for the same texts in the same order.
    """
    tokenizer = Tokenizer(models.BPE())
    if lowercase:
        tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A {EOS}", special_tokens=[(BOS, 1), (EOS, 2)]
    )
    return read_tokenizer(tokenizer.to_str())


def read_tokenizer(text: str) -> PreTrainedTokenizerFast:
    """A tokenizer of :func:`train_tokenizer`, of the JSON that its ``backend_tokenizer`` writes."""
    made = Tokenizer.from_str(text)
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=PAD, bos_token=BOS, eos_token=EOS)
