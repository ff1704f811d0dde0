"""Downstream tasks whose networks measure the utility of synthetic data."""
