"""From a request to generated images and reports: encode, fuse, sample, decode."""
