"""Synthetic data sets to specification: a plan, its items, and the folder that they are made in (``xgem cohort``)."""
