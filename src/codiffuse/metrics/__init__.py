"""Scores of images, kernels and tilt fields, one number an image, and the statistics over images."""

from codiffuse.metrics.consistency import kernel_axes, kernel_std
from codiffuse.metrics.field import endpoint_error
from codiffuse.metrics.image import align, psnr, psnr_aligned, reblur, ssim
from codiffuse.metrics.kernel import kernel_mse, kernel_shift, mnc
from codiffuse.metrics.perceptual import Lpips, find_lpips_weights
from codiffuse.metrics.statistics import Interval, bootstrap_ci, paired_difference, paired_share

__all__ = [
    "Interval",
    "Lpips",
    "align",
    "bootstrap_ci",
    "endpoint_error",
    "find_lpips_weights",
    "kernel_axes",
    "kernel_mse",
    "kernel_shift",
    "kernel_std",
    "mnc",
    "paired_difference",
    "paired_share",
    "psnr",
    "psnr_aligned",
    "reblur",
    "ssim",
]
