"""Training: one loop, one stage class a component, checkpoints that resume to the same result."""
