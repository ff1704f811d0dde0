"""Training of text-to-image pipelines of diffusers: a LoRA, or all of the denoiser."""
