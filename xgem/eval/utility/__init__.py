"""What generated pictures are worth as training data: networks trained on them, tested on real pictures alone."""
