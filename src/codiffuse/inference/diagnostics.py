"""How far a blind restoration can be trusted, judged from what is known without the truth.

Each feature is one number of `codiffuse.metrics.consistency`; the flags are limits on single features, the trust is a
logistic regression on a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.methods.base import Restarts
from codiffuse.metrics import consistency
from codiffuse.operators.blur import BlurOperator

FLAGS: dict[str, str] = {
    "no_blur": "Hardly any blur was found, so the picture was little more than cleaned of noise.",
    "residual_too_large": "Picture and blur together do not explain the measurement; something else happened to it.",
    "restarts_disagree": "Runs from different starts found different blurs, so the one shown is uncertain.",
    "residual_not_white": "What is left unexplained has structure, so the blur found is probably not quite right.",
    "kernel_at_border": "The blur reaches the edge of the space it was given; try a larger kernel_size.",
    "texture_poor": "The picture shows too little detail above the noise to tell how it was blurred.",
    "blur_not_uniform": "The blur differs from place to place, and one kernel cannot undo it everywhere.",
    "saturated": "Parts of the picture are pure black or white, where the blur cannot be undone.",
    "noise_corrected": "The noise level that was given did not fit the picture and was replaced by a measured one.",
}

# Limits of the flags; see `_flags`. From the runs that the trust was fitted on.
MIN_KERNEL_PIXELS = 4.0
MAX_RESIDUAL_RATIO = 1.25
MAX_RESIDUAL_CORRELATION = 0.1
MAX_BORDER_MASS = 0.03
MIN_RESTART_AGREEMENT = 0.7
MIN_TEXTURE = 0.3
MIN_WINDOW_AGREEMENT = 0.6
MAX_CLIPPED = 0.02
MAX_SIGMA_CORRECTION = 0.1


class Term(NamedTuple):
    """One predictor of the logistic regression: `weight (clip(value) - mean) / std`.

    Attributes:
        weight: of the standardised predictor; positive raises the trust.
        mean: over the calibration runs; a predictor that is missing is taken to be there.
        std: likewise.
    """

    weight: float
    mean: float
    std: float


TRUST_BIAS = 0.0
TRUST_TERMS: dict[str, Term] = {}
REACH = 2.5  # standard deviations up to which a predictor counts: the calibration knows nothing of what lies beyond
