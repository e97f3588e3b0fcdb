"""Estimation of operator parameters from images: the M-step."""
