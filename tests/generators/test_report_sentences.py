"""Reports divided into places for sentences, and a codec with a latent vector for each."""

from __future__ import annotations

from typing import Any

import pytest
import torch

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


def test_places_are_written_only_where_there_are_some_and_are_checked() -> None:
    assert "sentences" not in ReportVAEConfig().model_dump()
    assert ReportVAEConfig.parse(ReportVAEConfig(sentences=BOTH).model_dump(), "x").sentences == BOTH
    for wrong in ({}, {"impression": 0}, {"history": 2}):
        with pytest.raises(ConfigError, match="sentences"):
            ReportVAEConfig.parse({"sentences": wrong}, "preset")
