"""Metrics as functions of arrays. They read no files and know no models."""
