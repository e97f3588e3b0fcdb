"""Codiffuse: diffusion priors for blind inverse problems.

A blurred picture comes in; the sharp image, the unknown kernel, and how sure we are come out.
"""

__version__ = "0.1.0"
