"""Helpers shared by all layers: devices, seeded noise, progress bars, files, hashes, contact sheets, tables."""
