"""The debug preset with the report generator and the alignment of ``xgem-published``."""

from __future__ import annotations

from typing import Any

from xgem.configs.preset import Preset


def published_layout(debug: Preset, **alignment: Any) -> Preset:
    """``alignment``: fields of its alignment."""
    values = debug.model_dump(mode="json")
    parts = values["components"]
    kept = ("modality", "prompts", "context_dim", "pooled_dim", "latent_dim", "diffusion")
    parts["report"] = {key: parts["report"][key] for key in kept} | {
        "kind": "fc_report_generator", "context": "pooled", "tokens": 2, "width": 16, "channel_mult": [1, 2],
        "attention": [True, True], "layers_per_block": 1, "heads": 2, "cross_attention_dim": 32, "norm_num_groups": 8,
        "repeat_middle": True,
    }  # fmt: skip
    parts["report_vae"]["first_position"] = 1
    for view in ("frontal", "lateral"):
        parts[view] |= {"repeat_middle": True}
    outputs = {view: {"latent_shape": [4, 4, 4], "sites": [32, 32, 32]} for view in ("frontal", "lateral")}
    outputs["report"] = {"latent_shape": [16], "sites": [16, 32, 32, 32, 16, 16]}
    parts["alignment"] = {
        "kind": "transformer_alignment", "width": 16, "channel_mult": [1, 2], "report_tokens": 2, "dim": 24, "heads": 2,
        "norm_num_groups": 8, "outputs": outputs,
    } | alignment  # fmt: skip
    return Preset.parse(values | {"name": "debug-published"}, "debug-published")
