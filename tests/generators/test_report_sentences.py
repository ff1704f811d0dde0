"""Reports divided into places for sentences, and a codec with a latent vector for each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from xgem.checkpoints.store import init_checkpoint, load_component, save_component
from xgem.configs.base import Section
from xgem.configs.codecs import ReportVAEConfig
from xgem.encoders.tokenizer import train_tokenizer
from xgem.generators.report_sentences import from_sentences, to_sentences
from xgem.generators.report_vae import ReportVAE
from xgem.types import ConfigError, InputError, ShapeError

BOTH: dict[Section, int] = {"findings": 3, "impression": 2}
WHOLE = "Findings: Heart is large. Lungs are clear. Impression: 1. Cardiomegaly."


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        (WHOLE, ["Heart is large.", "Lungs are clear.", "", "1. Cardiomegaly.", ""]),
        ("No acute disease.", ["", "", "", "No acute disease.", ""]),
        ("Findings: A b. C d. E f. G h.", ["A b.", "C d.", "E f. G h.", "", ""]),  # the last place takes what is left
        ("One. Two. Three.", ["", "", "", "One.", "Two. Three."]),
    ],
)
def test_a_report_of_sections_has_a_place_for_each_sentence(report: str, sentences: list[str]) -> None:
    assert to_sentences(report, BOTH) == sentences
    assert from_sentences(sentences, BOTH) == report


def test_a_single_section_takes_the_report_as_it_is() -> None:
    assert to_sentences("Clear. Findings: none.", {"impression": 3}) == ["Clear.", "Findings: none.", ""]
    assert from_sentences(["Clear.", "", "Old."], {"findings": 3}) == "Clear. Old."
    assert from_sentences(["", ""], {"impression": 2}) == ""


def test_a_sentence_stands_once_in_a_section() -> None:
    twice = ["Large heart.", "Large heart.", "Clear.", "Large heart.", ""]
    assert from_sentences(twice, BOTH) == "Findings: Large heart. Clear. Impression: Large heart."


@pytest.fixture(scope="module")
def vae() -> ReportVAE:
    """Random weights; different latents say different things."""
    config = ReportVAEConfig(
        vocab_size=300, max_length=16, width=32, layers=1, heads=2, latent_dim=8, sentences=BOTH, latent_std=1.7
    )  # fmt: skip
    torch.manual_seed(0)
    module = ReportVAE.from_config(config, None, train_tokenizer([WHOLE], 300)).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return module


@torch.no_grad()
def test_each_sentence_has_the_latent_that_it_has_alone(vae: ReportVAE) -> None:
    assert vae.latent_shape == vae.config.latent_shape == (40,)
    latents = vae.encode([WHOLE, "No acute disease."]).unflatten(1, (5, 8))
    alone = ((vae.posterior(["Lungs are clear.", "", "No acute disease."])[0]) - 0.0) / 1.7
    torch.testing.assert_close(latents[0, 1], alone[0])
    torch.testing.assert_close(latents[0, [2, 4]], alone[[1, 1]])
    torch.testing.assert_close(latents[1, 3], alone[2])
    with pytest.raises(InputError, match="empty one"):
        vae.encode([" "])


def test_each_latent_is_decoded_to_the_sentence_that_it_has_alone(vae: ReportVAE) -> None:
    z = torch.randn(3, 40) * 2
    one: Any = ReportVAE(vae.config.model_copy(update={"sentences": None}), *[vae.decoder_tokenizer] * 2)
    one.load_state_dict(vae.state_dict())
    one.eval()
    alone = [one.decode(row.unflatten(0, (5, 8))) for row in z]
    assert vae.decode(z) == [from_sentences(texts, BOTH) for texts in alone]
    with pytest.raises(ShapeError, match="40"):
        vae.decode(torch.randn(3, 8))


SENTENCES = ("Heart is large.", "Lungs are clear.", "")


class Learned(ReportVAE):
    """Decodes a latent near that of one of the sentences to it, as a trained codec does; others as its weights do."""

    def _decode_texts(self, z: torch.Tensor, **options: Any) -> list[str]:
        texts = super()._decode_texts(z, **options)
        distances = torch.cdist(z, self._means(list(SENTENCES)))  # (b, 3)
        return [SENTENCES[row.argmin()] if row.min() < 0.5 else t for row, t in zip(distances, texts, strict=True)]


@pytest.fixture
def knowing(vae: ReportVAE) -> ReportVAE:
    """The same weights, with two known sentences and the empty one."""
    config = vae.config.model_copy(update={"known_sentences": True})
    module = Learned(config, *[vae.decoder_tokenizer] * 2)
    module.load_state_dict(vae.state_dict())
    module.eval().know(SENTENCES)
    return module


def test_latents_between_sentences_become_known_ones(vae: ReportVAE, knowing: ReportVAE) -> None:
    texts = ["Lungs are clear.", "", "", "Heart is large.", ""]
    z = knowing.encode([from_sentences(texts, BOTH)])
    beside = z + 0.2 * z.std() * torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    assert vae.decode(beside) != [from_sentences(texts, BOTH)]  # random weights decode to something else
    assert knowing.decode(beside) == knowing.decode(z) == [from_sentences(texts, BOTH)]


def test_a_text_that_comes_back_to_its_latent_stands(knowing: ReportVAE, monkeypatch: pytest.MonkeyPatch) -> None:
    new = "No acute disease."
    z = knowing.encode([new])

    learned = knowing._decode_texts

    def decoded(z: Any, **options: Any) -> list[str]:
        return ["", "", "", new, ""] if len(z) == 5 else learned(z, **options)  # the report's places, or known ones

    monkeypatch.setattr(knowing, "_decode_texts", decoded)
    assert knowing.decode(z) == [new]
    known = knowing.encode(["Heart is large."])
    assert knowing.decode(known * 0.9 + z * 0.1) == ["Heart is large."]
    monkeypatch.setattr("xgem.generators.report_vae._NEAR", 0.0)
    assert knowing.decode(z) != [new]


def test_known_sentences_are_stored_and_need_places(vae: ReportVAE, knowing: ReportVAE, tmp_path: Path) -> None:
    init_checkpoint(tmp_path / "model", {"components": {}})
    save_component(tmp_path / "model", "report_vae", knowing)
    again: Any = load_component(tmp_path / "model", "report_vae")
    torch.testing.assert_close(again.known, knowing.known)
    assert (again.known.dtype, again.known.shape) == (torch.uint8, (3, 4))  # two values in a byte
    z = knowing.encode([from_sentences(list(SENTENCES), {"findings": 2, "impression": 1})])
    again.__class__ = Learned
    assert again.eval().decode(z) == knowing.decode(z)
    assert not any(b"Lungs are clear" in file.read_bytes() for file in (tmp_path / "model").rglob("*known*"))
    vae.save_assets(tmp_path)
    assert not list(tmp_path.glob("known*"))
    with pytest.raises(ConfigError, match="expected sentences"):
        ReportVAEConfig.parse({"known_sentences": True}, "preset")
    with pytest.raises(ConfigError, match="even latent_dim, got 5"):
        ReportVAEConfig.parse({"known_sentences": True, "sentences": BOTH, "latent_dim": 5}, "preset")


def test_only_sentences_that_decode_to_themselves_are_kept(knowing: ReportVAE) -> None:
    kept = knowing.known
    knowing.know([*SENTENCES, "No acute disease."])
    torch.testing.assert_close(knowing.known, kept)
    knowing.know(["No acute disease."])
    assert knowing.known is None


def test_places_are_written_only_where_there_are_some_and_are_checked() -> None:
    assert "sentences" not in ReportVAEConfig().model_dump()
    assert ReportVAEConfig.parse(ReportVAEConfig(sentences=BOTH).model_dump(), "x").sentences == BOTH
    for wrong in ({}, {"impression": 0}, {"history": 2}):
        with pytest.raises(ConfigError, match="sentences"):
            ReportVAEConfig.parse({"sentences": wrong}, "preset")
