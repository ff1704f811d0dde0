"""Measures: what a model's outputs agree with, how they look, and how sure one can be of it."""
