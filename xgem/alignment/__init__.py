"""Joint generation: coupling of the outputs that are sampled together (XGeM 2.3)."""
