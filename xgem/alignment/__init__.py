"""Joint generation: what several outputs share while they are sampled together (XGeM 2.3)."""
