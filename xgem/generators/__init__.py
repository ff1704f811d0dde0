"""Codecs and latent diffusion generators, one per modality, and the samplers that run them."""
