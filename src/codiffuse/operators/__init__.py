"""Measurement operators `y = A(x; params)`, linear in the image and in each parameter, and the noise that follows."""
