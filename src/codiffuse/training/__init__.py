"""Training: the Lightning modules, their data, averaging and checkpoints. Nothing outside this package needs Lightning."""
