"""What every layer shares: devices, seeded noise, progress, files, hashes, contact sheets."""
