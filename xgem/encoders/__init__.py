"""Prompt encoders: images and text into one contrastive space, and their fusion into a generator's context."""
