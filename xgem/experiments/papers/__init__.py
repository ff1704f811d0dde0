"""The experiments of XGeM, ChexGen and CheXGenBench: each a plan in ``xgem/configs/experiments``."""
