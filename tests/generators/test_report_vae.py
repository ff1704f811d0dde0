"""The report codec: cached decoding against decoding without a cache, and against GPT-2 written out."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor

from xgem.checkpoints.weights import WEIGHTS_NAME, read_weights, write_weights
from xgem.configs.codecs import ReportVAEConfig
from xgem.generators.report_vae import ReportVAE
from xgem.types import ConfigError, ShapeError

TEXTS = ["Large left pleural effusion.", "No acute cardiopulmonary abnormality. Clear lungs."]


@pytest.fixture(scope="module", params=[1, 3])
def vae(debug_parts: dict[str, Any], request: pytest.FixtureRequest) -> ReportVAE:
    """Random weights, scaled up so that different latents say different things; so many memory tokens a layer."""
    given = debug_parts["report_vae"]
    config = given.config.model_copy(update={"memory_tokens": request.param})
    module = ReportVAE(config, given.encoder_tokenizer, given.decoder_tokenizer).eval()
    with torch.no_grad():
        torch.manual_seed(3)
        for parameter in module.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
    module.config = module.config.model_copy(update={"latent_mean": 0.3, "latent_std": 1.7})
    return module


@torch.no_grad()
def written_out(vae: ReportVAE, ids: Tensor, z: Tensor) -> Tensor:
    """GPT-2 with Optimus' injections, without transformers' forward and without a cache: logits (b, n, vocabulary)."""
    gpt2: Any = vae.decoder.transformer
    n, heads, layers = ids.shape[1], vae.decoder.config.n_head, vae.decoder.config.n_layer
    memory = vae.to_memory(z).chunk(layers, dim=1)
    x = gpt2.wte(ids) + vae.to_embedding(z)[:, None] + gpt2.wpe(torch.arange(n))
    m = vae.config.memory_tokens
    seen = torch.cat([torch.ones(n, m), torch.ones(n, n).tril()], dim=1).bool()  # the memory, and what came before

    def split(y: Tensor) -> Tensor:
        return y.unflatten(2, (heads, -1)).transpose(1, 2)

    for block, tokens in zip(gpt2.h, memory, strict=True):
        query, key, value = block.attn.c_attn(block.ln_1(x)).chunk(3, dim=2)
        key, value = (torch.cat([tokens.unflatten(1, (m, -1)), y], dim=1) for y in (key, value))
        query, key, value = split(query), split(key), split(value)
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5
        mixed = scores.masked_fill(~seen, float("-inf")).softmax(dim=-1) @ value
        x = x + block.attn.c_proj(mixed.transpose(1, 2).flatten(2))
        x = x + block.mlp(block.ln_2(x))
    return gpt2.ln_f(x) @ gpt2.wte.weight.T


def test_teacher_forcing_is_gpt2_written_out(vae: ReportVAE) -> None:
    ids, z = vae.decoder_ids(TEXTS), torch.randn(2, 16)
    torch.testing.assert_close(vae.logits(ids, z), written_out(vae, ids, z), rtol=1e-4, atol=1e-4)


def uncached(vae: ReportVAE, z: Tensor) -> list[str]:
    """Greedy decoding that starts over for every token."""
    raw, tokenizer = z * vae.config.latent_std + vae.config.latent_mean, vae.decoder_tokenizer
    texts = []
    for row in raw.split(1):
        ids = torch.tensor([[tokenizer.bos_token_id]])
        while ids.shape[1] < vae.config.max_length and int(ids[0, -1]) != tokenizer.eos_token_id:
            logits = written_out(vae, ids, row)[0, -1]
            logits[[tokenizer.pad_token_id, tokenizer.bos_token_id]] = float("-inf")
            ids = torch.cat([ids, logits.argmax().view(1, 1)], dim=1)
        texts.append(tokenizer.decode(ids[0], skip_special_tokens=True).strip())
    return texts


def test_cached_decoding_is_uncached_decoding(vae: ReportVAE) -> None:
    z = torch.randn(6, 16) * 2
    made = vae.decode(z)
    assert made == uncached(vae, z)
    assert len(set(made)) > 3  # else the test would show nothing


def test_a_text_does_not_depend_on_its_batch(vae: ReportVAE) -> None:
    z = torch.randn(5, 16)
    assert [vae.decode(row)[0] for row in z.split(1)] == vae.decode(z)


def test_sampling_is_seeded(vae: ReportVAE) -> None:
    z = torch.randn(3, 16)
    one, again, other = (
        vae.decode(z, greedy=False, generator=torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert one == again
    assert one != other
    cold = vae.decode(z, greedy=False, generator=torch.Generator().manual_seed(1), temperature=1e-4)
    assert cold == vae.decode(z)


def test_decoding_stops_at_the_end_and_at_the_limit(vae: ReportVAE) -> None:
    ending = copy.deepcopy(vae)
    tokenizer = ending.decoder_tokenizer
    with torch.no_grad():  # every logit but that of the end token is far below it
        ending.decoder.transformer.ln_f.weight.zero_()
        ending.decoder.transformer.ln_f.bias.copy_(ending.decoder.transformer.wte.weight[tokenizer.eos_token_id] * 9)
    assert ending.decode(torch.randn(2, 16)) == ["", ""]
    with torch.no_grad():
        word = tokenizer("x", add_special_tokens=False)["input_ids"][-1]
        ending.decoder.transformer.ln_f.bias.copy_(ending.decoder.transformer.wte.weight[word] * 9)
    (text,) = ending.decode(torch.randn(1, 16))
    count = len(tokenizer(text, add_special_tokens=False)["input_ids"])
    assert 0 < count <= ending.config.max_length


def test_loss_is_the_likelihood_of_the_tokens(vae: ReportVAE) -> None:
    ids, z = vae.decoder_ids(TEXTS), torch.randn(2, 16)
    logs = vae.logits(ids, z).log_softmax(dim=-1)
    pad = vae.decoder_tokenizer.pad_token_id
    expected = []
    for row, log in zip(ids, logs, strict=True):
        expected.append(-sum(log[i, row[i + 1]].item() for i in range(len(row) - 1) if int(row[i + 1]) != pad))
    torch.testing.assert_close(vae.reconstruction_loss(ids, z), torch.tensor(expected), rtol=1e-4, atol=1e-3)
    alone = vae.decoder_ids(TEXTS[:1])
    torch.testing.assert_close(vae.reconstruction_loss(alone, z[:1]), vae.reconstruction_loss(ids, z)[:1])


def test_latents_are_normalised_posterior_means(vae: ReportVAE) -> None:
    mean, logvar = vae.posterior(TEXTS)
    assert mean.shape == logvar.shape == (2, *vae.latent_shape)
    torch.testing.assert_close(vae.encode(TEXTS) * 1.7 + 0.3, mean)
    torch.testing.assert_close(vae.encode(TEXTS[:1]), vae.encode(TEXTS)[:1], rtol=1e-4, atol=1e-5)  # padding is hidden


def test_the_latent_reaches_every_token_by_both_ways(vae: ReportVAE) -> None:
    ids = vae.decoder_ids(TEXTS[:1])
    for way in ("to_memory", "to_embedding"):
        one = copy.deepcopy(vae)
        torch.nn.init.zeros_(getattr(one, "to_embedding" if way == "to_memory" else "to_memory").weight)
        with torch.no_grad():
            difference = one.logits(ids, torch.ones(1, 16)) - one.logits(ids, -torch.ones(1, 16))
        assert (difference.abs().amax(dim=2) > 1e-4).all(), way


def test_latents_of_another_shape_are_refused(vae: ReportVAE) -> None:
    with pytest.raises(ShapeError, match="report VAE"):
        vae.decode(torch.zeros(2, 17))


def test_the_decoder_is_causal(vae: ReportVAE) -> None:
    ids, z = vae.decoder_ids(TEXTS[:1]), torch.randn(1, 16)
    other = ids.clone()
    other[:, 3:] = 5
    with torch.no_grad():
        torch.testing.assert_close(vae.logits(other, z)[:, :3], vae.logits(ids, z)[:, :3])
    assert not torch.allclose(F.softmax(vae.logits(other, z)[:, 4], -1), F.softmax(vae.logits(ids, z)[:, 4], -1))


def test_posteriors_begin_narrow_where_that_is_set(vae: ReportVAE) -> None:
    narrow = copy.deepcopy(vae)
    narrow.config = vae.config.model_copy(update={"log_variance": -3.0})
    with torch.no_grad():
        (mean, logvar), (same, lower) = vae.posterior(TEXTS), narrow.posterior(TEXTS)
    torch.testing.assert_close(same, mean)
    torch.testing.assert_close(lower, logvar - 3)


def test_shared_embeddings_are_one_table_that_is_stored_once(vae: ReportVAE, tmp_path: Path) -> None:
    config = vae.config.model_copy(update={"shared_embeddings": True})
    tokenizer = vae.decoder_tokenizer
    module = ReportVAE(config, tokenizer, tokenizer)
    assert module.encoder.embeddings.word_embeddings.weight is module.decoder.transformer.wte.weight
    saved = sum(value.numel() for value in module.parameters())
    assert saved == sum(value.numel() for value in vae.parameters()) - len(tokenizer) * config.width
    write_weights(tmp_path, "report_vae", module.state_dict())
    with safe_open(tmp_path / WEIGHTS_NAME, framework="pt") as file:
        tables = [key for key in file.keys() if file.get_slice(key).get_shape()[:1] == [len(tokenizer)]]  # noqa: SIM118
    assert len(tables) == 1
    again = ReportVAE(config, tokenizer, tokenizer)
    again.load_state_dict({key: value for key, (value, _) in read_weights(tmp_path, [WEIGHTS_NAME]).items()})
    z = torch.randn(2, 16)
    assert again.eval().decode(z) == module.eval().decode(z)
    with pytest.raises(ConfigError, match="shared_embeddings"):
        ReportVAEConfig.parse(
            {"pretrained_encoder": "a", "pretrained_decoder": "b", "shared_embeddings": True}, "preset"
        )
