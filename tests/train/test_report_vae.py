"""The loss of the report codec: the KL term's cycle, free bits, hidden tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.convert.codi_layout import TINY, made, optimus, vocabularies
from tests.published_layout import published_layout
from tests.train.batches import batch_of
from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs.preset import Preset
from xgem.convert.xgem_report import optimus as read_optimus
from xgem.data.manifest import Manifest
from xgem.train.context import StageContext
from xgem.train.corpus import Corpus
from xgem.train.loop import LoopOptions
from xgem.train.report_vae import ReportVAEStage, _worth_knowing, kl_weight
from xgem.train.stages import run


def stage_of(preset: Preset, corpora: tuple[Corpus, Corpus], loss: dict[str, float], **settings: Any) -> ReportVAEStage:
    torch.manual_seed(0)
    config = preset.train["report-vae"].model_copy(update={"loss": loss, **settings})
    preset = preset.model_copy(update={"train": {"report-vae": config}})
    return ReportVAEStage(StageContext(preset, *corpora, Path("root"), seed=0))


@pytest.mark.parametrize(
    ("progress", "weight"), [(0.0, 0.0), (0.5, 0.0), (0.55, 0.2), (0.625, 0.5), (0.75, 1.0), (0.9, 1.0), (1.0, 1.0)]
)
def test_the_kl_term_is_off_then_rises_then_stays(progress: float, weight: float) -> None:
    assert kl_weight(progress) == pytest.approx(weight)


def test_batches_carry_the_weight_of_their_step(debug_preset: Preset, corpora: tuple[Corpus, Corpus]) -> None:
    stage = stage_of(debug_preset, corpora, {}, steps=40)
    found = [batch_of(stage, step)["kl"] for step in (0, 20, 25, 30, 39)]
    assert found == pytest.approx([0.0, 0.0, 0.5, 1.0, 1.0])


def test_the_loss_is_likelihood_and_weighted_kl_above_the_free_bits(
    debug_preset: Preset, corpora: tuple[Corpus, Corpus]
) -> None:
    stage: Any = stage_of(debug_preset, corpora, {"kl": 0.3, "free_bits": 0.5})
    nll, counts = torch.tensor([4.0, 8.0]), torch.tensor([2, 4])
    # Dimensions whose mean KL is 0, 0.25 + 1 halved and twice 2 halved: the free bits are of the mean over the batch
    mean = torch.tensor([[0.0, 0.5**0.5, 2.0], [0.0, 1.0, 2.0]])
    logvar = torch.zeros(2, 3)

    def module(texts: list[str], drawn: Any) -> Any:
        return nll, mean, logvar, counts

    floored = 0.5 + 0.5 + 2.0
    for weight in (0.0, 0.4):
        loss, logged = stage.loss(module, {"texts": ["a", "b"], "kl": weight, "drawn": {}})
        assert float(loss) == pytest.approx((6.0 + weight * 0.3 * floored) / 10)
        assert float(logged["kl"]) == pytest.approx((0.25 + 2.0 + 0.5 + 2.0) / 2)
        assert float(logged["nll_per_token"]) == pytest.approx(2.0)


def test_the_kl_divergence_is_that_of_gaussians(debug_preset: Preset, corpora: tuple[Corpus, Corpus]) -> None:
    stage: Any = stage_of(debug_preset, corpora, {"free_bits": 0.0})
    mean, logvar = torch.randn(5, 16), torch.randn(5, 16)
    posterior = torch.distributions.Normal(mean, (0.5 * logvar).exp())
    expected = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0))
    total, floored = stage._kl(mean, logvar)
    torch.testing.assert_close(total, expected.sum(dim=1).mean())
    torch.testing.assert_close(floored, expected.mean(dim=0).sum())


def test_reports_and_sentences_are_read_when_they_are_asked_for(
    debug_preset: Preset, corpora: tuple[Corpus, Corpus]
) -> None:
    stage, train = stage_of(debug_preset, corpora, {}), corpora[0]
    indices = range(len(train.studies))
    assert list(stage.reports) == [train.report(index) for index in indices if train.report(index)]
    pool = [sentence for index in indices for sentence in train.sentences(index)]
    assert len(pool) > len(stage.reports)
    assert list(stage.pool) == pool
    assert [stage.pool[number] for number in (0, 7, -1)] == [pool[number] for number in (0, 7, -1)]
    assert stage.pool[5:9] == pool[5:9]
    with pytest.raises(IndexError):
        stage.pool[len(pool)]


@pytest.mark.parametrize("hide", [0.0, 0.4, 1.0])
def test_a_share_of_the_decoders_inputs_is_hidden_in_training_alone(
    hide: float, debug_preset: Preset, corpora: tuple[Corpus, Corpus], monkeypatch: pytest.MonkeyPatch
) -> None:
    stage: Any = stage_of(debug_preset, corpora, {"hide": hide})
    seen: list[Any] = []
    monkeypatch.setattr(
        stage.module.vae,
        "reconstruction_loss",
        lambda ids, z, inputs: seen.append((ids, inputs)) or torch.zeros(len(ids)),
    )
    texts = list(stage.train_texts) * 40
    drawn = {"noise": torch.zeros(len(texts), 16), "hidden": torch.rand(len(texts), 32)}
    for given in (drawn, None):
        stage.module(texts, given)
    (ids, inputs), (_, shown) = seen
    pad = stage.module.vae.decoder_tokenizer.pad_token_id
    real = ids != pad
    assert torch.equal(shown, ids)
    assert torch.equal(inputs[:, 0], ids[:, 0])  # the start is always there
    assert ((inputs == ids) | (inputs == pad)).all()
    tokens = real[:, 1:].sum()
    hidden = ((inputs == pad) & real)[:, 1:].sum() / tokens
    assert abs(float(hidden) - hide) < 5 * float(1 / tokens) ** 0.5 * (0 < hide < 1) + 1e-9


def test_sentences_worth_knowing_recur_or_state_a_finding() -> None:
    reports = [
        "Findings: Clear lungs. Small left pleural effusion. Impression: Clear lungs.",
        "Findings: No effusion is seen today. Old film. Impression: Stable.",
        "Findings: Clear lungs. Impression: Stable.",
    ]
    kept = _worth_knowing(reports, {"findings": 2, "impression": 1})
    assert kept == ["Clear lungs.", "Small left pleural effusion.", "Stable."]


def test_a_converted_optimus_is_trained_on_with_its_tokenizers(debug_preset: Preset, toy: Path, tmp_path: Path) -> None:
    """No hub is asked, and vocabularies and sizes stay those of the checkpoint."""
    sizes = vocabularies(tmp_path)
    weights = made(optimus(*sizes), torch.Generator().manual_seed(0))
    values = published_layout(debug_preset).model_dump(mode="json")
    parts = values["components"]
    parts["report_vae"] = {
        "kind": "report_vae", "pretrained_encoder": "bert-base-cased", "pretrained_decoder": "gpt2", "max_length": 32,
        "width": TINY.text_width, "layers": TINY.text_layers, "heads": TINY.text_heads, "latent_dim": TINY.latent,
        "first_position": 1,
    }  # fmt: skip
    parts["report"]["latent_dim"] = TINY.latent
    parts["alignment"]["outputs"]["report"]["latent_shape"] = [TINY.latent]
    preset = Preset.parse(values, "optimus")
    codec, (ours, _) = read_optimus(weights, tmp_path, preset.components["report_vae"])  # type: ignore[arg-type]
    codec.load_state_dict(ours)
    source, out = tmp_path / "source", tmp_path / "out"
    init_checkpoint(source, preset)
    save_component(source, "report_vae", codec)
    options = LoopOptions(progress=False, tensorboard=False)
    run(["report-vae"], preset, Manifest.read(toy), out, options, init=source)
    trained: Any = load_component(out, "report_vae")
    before, after = codec.state_dict(), trained.state_dict()
    assert {name: value.shape for name, value in before.items()} == {name: v.shape for name, v in after.items()}
    assert not torch.equal(before["to_memory.weight"], after["to_memory.weight"])
    assert trained.decoder_tokenizer.bos_token == "<BOS>"
    assert trained.encoder_tokenizer("No")["input_ids"] == codec.encoder_tokenizer("no")["input_ids"]
    assert trained.config.first_position == 1
