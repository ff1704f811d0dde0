"""Synthetic data sets: chosen by judges, checked against training images, published as a folder."""
