"""Published weights as xgem checkpoints: names are mapped, all shapes are checked, no code from the files is run."""
