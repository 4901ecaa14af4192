"""What to train on: one module a data set, each with its card, and the makers of shapes and tones."""
