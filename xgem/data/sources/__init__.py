"""One module a public data set: each turns the published files into a manifest and copies nothing."""
