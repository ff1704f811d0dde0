"""What generated images are worth as training data: networks trained on them, tested on real images alone."""
