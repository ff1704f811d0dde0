"""Published checkpoints in xgem's format: names are mapped, every shape is checked, nothing is run."""
