"""CheXGenBench (Dutt et al. 2025) from end to end: generation, its measures, its tables and ranks."""
