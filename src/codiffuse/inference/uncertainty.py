"""The calibration of the shipped preset: how much the spread of its samples must be raised to be that of the truth."""

# From `python -m benchmarks.coverage bsds400`, pictures of the training set of the prior; docs/photographs.md.
FACTOR = 3.5
