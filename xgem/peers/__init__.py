"""Published text-to-image models in diffusers' format: generation by the same call, and what training takes."""
