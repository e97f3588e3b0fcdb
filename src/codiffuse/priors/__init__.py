"""Priors: networks turned into denoisers of a known space, the shipped zoo, and published checkpoints."""
