"""Training: the Lightning modules, their data, averaging and checkpoints. Nothing else needs Lightning."""
