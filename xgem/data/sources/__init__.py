"""One module per public data set: each turns the published files into a manifest without copying them."""
