"""How far a blind restoration can be trusted, judged from what is known without the truth.

Each feature is one number, most of them of `codiffuse.metrics.consistency`. The flags are limits on single features,
the trust is a regression on a few of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from codiffuse.errors import InputError
from codiffuse.estimation.spectrum import OFFSET, expected_spread
from codiffuse.estimation.support import border_mass, kernel_pixels
from codiffuse.methods.base import Restarts
from codiffuse.methods.coarse import downsampled
from codiffuse.methods.photograph import HARDLY_BLURRED, Photograph
from codiffuse.methods.windows import texture
from codiffuse.metrics import consistency
from codiffuse.operators.blur import BlurOperator

FLAGS: dict[str, str] = {
    "sharp": "The picture looks sharp, so no blur was looked for; if it is blurred, set kernel_size=33.",
    "no_blur": "Hardly any blur was found, so little but noise was removed.",
    "residual_too_large": "Picture and blur together do not explain the measurement; something else happened to it.",
    "restarts_disagree": "Runs from different starts found different blurs, so the one shown is uncertain.",
    "residual_not_white": "What is left unexplained has structure, so the blur found is probably not quite right.",
    "still_blurred": "The result still looks blurred: the blur may be longer than was found, or the picture soft.",
    "kernel_at_border": "The blur reaches the edge of the space it was given; try a larger kernel_size.",
    "texture_poor": "The picture shows too little detail above the noise to tell how it was blurred.",
    "blur_not_uniform": "The blur differs from place to place, and one kernel cannot undo it everywhere.",
    "saturated": "Parts of the picture are pure black or white, where the blur cannot be undone.",
    "noise_corrected": "The blur found explains less than the noise level promised, so more noise was assumed.",
}

# Limits of the flags (docs/photographs.md): of 231 runs, 38 of them bad, two thirds and more of those beyond the limits
# of the residual were bad, and a third of those whose restarts disagree; the others are set by hand.
MAX_UNEXPLAINED = 1.1
MAX_STRUCTURE = 0.1
MIN_RESTART_SUPPORT = 0.7
MIN_TEXTURE = 0.1
MIN_WINDOW_AGREEMENT = 0.6
MAX_CLIPPED = 0.02
MAX_REMAINING_SPREAD, MIN_RELATIVE_SPREAD = 3.0, 0.6  # px that the spectrum of the result suggests; see `_features`
RESULT_SIGMA = 2 / 255  # level of what the spectrum of a result takes for noise
MAX_SIGMA_CORRECTION = 0.2  # of its logarithm: a residual ten per cent above the noise


class Term(NamedTuple):
    """One predictor of the regression: `weight clip((value - mean) / std, -REACH, REACH)`.

    Attributes:
        weight: of the standardised predictor; positive raises the trust.
        mean: over the calibration runs; a predictor that is missing is taken to be there.
        std: likewise.
    """

    weight: float
    mean: float
    std: float


# From 99 runs on pictures of BSDS400, 59 of them single runs of Fast EM, 20 of them bad (docs/photographs.md). Anew,
# from run folders with known truth:
#   python -m benchmarks.trust FOLDERS --fit
TRUST_BIAS = 2.091
TRUST_TERMS: dict[str, Term] = {
    "structure": Term(-2.606, -3.216, 3.429),
    "texture": Term(0.698, -0.2168, 0.7204),
    "relative_spread": Term(-0.709, 0.2513, 0.6699),
}
# Features of wide range, which the regression sees as logarithms, from the value on that tells something: a residual
# below what is tolerated speaks for no restoration, since noise can be fitted too, nor does a kernel that is too short.
LOGARITHMIC: dict[str, float] = {
    "residual_ratio": 1e-3,
    "residual_correlation": 1e-3,
    "unexplained": 1.0,
    "structure": 1e-3,
    "border_mass": 1e-3,
    "kernel_spread": 1e-3,
    "relative_spread": 0.7,
    "remaining_spread": 0.5,
    "kernel_pixels": 1e-3,
    "texture": 1e-3,
    "sharpening": 1e-3,
}
REACH = 2.5  # standard deviations up to which a predictor counts: the calibration knows nothing of what lies beyond


@dataclass(frozen=True)
class Diagnosis:
    """What can be said of one restoration without its truth.

    Attributes:
        trust: in [0, 1], estimated chance that the restoration is better than the measurement; `None` where no blur was
            looked for, or hardly any found.
        flags: keys of `FLAGS` that apply, in the order of `FLAGS`.
        features: the numbers behind both; what cannot be computed is left out.
    """

    trust: float | None
    flags: tuple[str, ...]
    features: dict[str, float]


@torch.no_grad()
def diagnose(
    y: Tensor,
    image: Tensor,
    kernel: Tensor,
    sigma: float,
    operator: BlurOperator,
    *,
    restarts: Restarts | None = None,
    mask: Tensor | None = None,
    window_kernels: Tensor | None = None,
    sigma_used: float | None = None,
    is_sharp: bool = False,
) -> Diagnosis:
    """Judge the restoration of one image.

    Args:
        y: `(C, H, W)` measurement.
        image: `(C, H', W')` restored: on the operator's canvas, which explains all of y, or the frame that y shows, of
            which with `valid` and `unknown` only y's inner part follows.
        kernel: `(1, h, w)` estimated.
        sigma: noise level of the measurement.
        operator: of the measurement.
        restarts: of this image: kernels `(R, h, w)`, residuals `(R,)`.
        mask: `(1, H, W)`, 1 for the pixels of y that follow the model; `None` trusts all.
        window_kernels: `(W, h, w)`, estimated from different parts of the picture.
        sigma_used: noise level that the last step of the restoration assumed instead.
        is_sharp: whether no blur was looked for.

    Raises:
        InputError: the image fits neither the canvas nor the frame.
    """
    features = _features(y[None], image[None], kernel[None], sigma, operator, mask)
    if restarts is not None:
        features |= _restart_features(kernel, restarts)
    if window_kernels is not None:
        features["window_agreement"] = consistency.agreement(window_kernels[None])
    numbers = {name: float(value) for name, value in features.items()}
    numbers = {name: value for name, value in numbers.items() if math.isfinite(value)}
    flags = _flags(numbers, kernel.shape[-1], sigma, sigma_used, is_sharp)
    return Diagnosis(None if {"sharp", "no_blur"} & {*flags} else trust(numbers), flags, numbers)


def trust(
    features: Mapping[str, float | None], bias: float = TRUST_BIAS, terms: Mapping[str, Term] = TRUST_TERMS
) -> float:
    """Estimated chance, in [0, 1], that a restoration with these features is better than its measurement."""
    found, score = predictors(features), bias
    for name, term in terms.items():
        if name in found:
            score += term.weight * min(max((found[name] - term.mean) / term.std, -REACH), REACH)
    return 1 / (1 + math.exp(-score))


def predictors(features: Mapping[str, float | None]) -> dict[str, float]:
    """What the regression sees: the features that are there, those of wide range on a logarithmic scale."""
    known = {name: value for name, value in features.items() if value is not None and math.isfinite(value)}
    return {
        name: math.log(max(value, LOGARITHMIC[name])) if name in LOGARITHMIC else value for name, value in known.items()
    }


def _features(
    y: Tensor, image: Tensor, kernel: Tensor, sigma: float, operator: BlurOperator, mask: Tensor | None
) -> dict[str, Tensor]:
    size, level = tuple(kernel.shape[-2:]), torch.tensor([sigma], device=y.device)
    unbatched, mask = mask, None if mask is None else mask[None]
    frame, seen, seen_mask = image, y, mask
    if image.shape[-2:] == operator.image_shape(tuple(y.shape[-2:]), kernel_size=size):
        frame = operator.crop_to_frame(image, kernel_size=size)
    elif image.shape == y.shape:
        seen = operator.crop_to_frame(y, kernel_size=size)
        seen_mask = None if mask is None else operator.crop_to_frame(mask, kernel_size=size)
    else:
        raise InputError(
            f"Expected an image of the measurement's size or on its canvas, got {tuple(image.shape[1:])} "
            f"for a measurement of {tuple(y.shape[1:])}."
        )
    residual = seen - operator(image, kernel=kernel)
    correlation = consistency.residual_correlation(residual, mask=seen_mask)
    unexplained = consistency.residual_ratio(residual, torch.full_like(level, _tolerated(sigma)), seen_mask)
    spread, expected = consistency.kernel_spread(kernel), expected_spread(y[0], sigma, unbatched)
    return {
        "residual_ratio": consistency.residual_ratio(residual, level, seen_mask),
        "residual_correlation": correlation,
        "unexplained": unexplained,
        "structure": correlation * unexplained**4,  # that of the covariance, in units of the level's fourth power
        "border_mass": border_mass(kernel),
        "kernel_spread": spread,
        "relative_spread": spread / (expected + OFFSET),  # of the blur found over that which the spectrum suggests
        "remaining_spread": torch.tensor(expected_spread(frame[0], RESULT_SIGMA)),
        "kernel_pixels": kernel_pixels(kernel),
        "texture": torch.tensor(texture(y[0], sigma, unbatched)),
        "sharpening": consistency.sharpening(frame, y, level, mask),
        "sparsity_before": consistency.gradient_sparsity(y, mask),
        "sparsity_after": consistency.gradient_sparsity(frame, mask),
        "clipped_share": consistency.clipped_share(y),
    }


def _tolerated(sigma: float) -> float:
    """Level up to which a residual says nothing bad: every photograph departs that far from the model of its blur."""
    return max(sigma, Photograph.least_sigma)


def _restart_features(kernel: Tensor, restarts: Restarts) -> dict[str, Tensor]:
    """How the restarts resemble each other, and the kernel that was kept, at the resolution of the restarts."""
    kernels = restarts.kernels[torch.isfinite(restarts.residuals)][None]
    return {
        "restart_agreement": consistency.agreement(kernels),
        "restart_support": consistency.support(downsampled(kernel[None], restarts.factor), kernels),
    }


def _flags(
    features: Mapping[str, float], side: int, sigma: float, sigma_used: float | None, is_sharp: bool
) -> tuple[str, ...]:
    def above(name: str, limit: float) -> bool:
        return features.get(name, -math.inf) > limit

    def below(name: str, limit: float) -> bool:
        return features.get(name, math.inf) < limit

    is_small = side <= Photograph.small_kernel_size
    max_border_mass = Photograph.small_border_limit if is_small else Photograph.border_limit  # above it kernels grow
    raised = {
        "sharp": is_sharp,
        "no_blur": below("kernel_pixels", HARDLY_BLURRED) and not is_sharp,
        "residual_too_large": above("unexplained", MAX_UNEXPLAINED),
        "restarts_disagree": below("restart_support", MIN_RESTART_SUPPORT),
        "residual_not_white": above("structure", MAX_STRUCTURE),
        "still_blurred": above("remaining_spread", MAX_REMAINING_SPREAD)
        and below("relative_spread", MIN_RELATIVE_SPREAD),
        "kernel_at_border": above("border_mass", max_border_mass),
        "texture_poor": below("texture", MIN_TEXTURE),
        "blur_not_uniform": below("window_agreement", MIN_WINDOW_AGREEMENT),
        "saturated": above("clipped_share", MAX_CLIPPED),
        "noise_corrected": sigma_used is not None and math.log(sigma_used / _tolerated(sigma)) > MAX_SIGMA_CORRECTION,
    }
    return tuple(name for name in FLAGS if raised[name])
