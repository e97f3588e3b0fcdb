"""What inference runs over: people's pictures, and pictures that are blurred here so that the truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from codiffuse.data.crops import luma
from codiffuse.data.images import Picture
from codiffuse.data.saturation import THRESHOLD, unsaturated
from codiffuse.data.sources import Source, centre_crop, data_root, evaluation_set, sources
from codiffuse.errors import InputError
from codiffuse.fourier import Size
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import noise_of
from codiffuse.operators.turbulence import TurbulenceOperator
from codiffuse.randomness import derive_seed
from codiffuse.simulate.mixture import KernelLaw
from codiffuse.simulate.turbulence import KolmogorovTilts, PatchTilts

SAMPLE_SIGMA = 5 / 255  # noise of the packaged samples, which are blurred here
MEDIAN_OF_GAUSSIAN = 0.6744897501960817  # of its absolute value, at a standard deviation of 1
TiltLaw = PatchTilts | KolmogorovTilts


@dataclass(frozen=True)
class Sample:
    """One measurement, with the truth where it is known.

    Attributes:
        id: names the image's folder and row.
        y: `(C, H, W)`, C = 1 or 3, [0, 1] units, not clipped.
        sigma: noise level in [0, 1] units; of photon noise, that of the same mean power.
        truth: `(C, H, W)`.
        kernel: `(1, h, w)`, the true one.
        tilt: `(2, H, W)` in pixels, the true one, within the frame.
        notes: what was done to the picture on reading, in words.
        mask: `(1, H, W)`, 1 for the pixels of y that count, 0 for saturated ones; `None` counts all.
        input_hash: of the picture that y was read or made from; `None` where that is no file.
    """

    id: str
    y: Tensor
    sigma: float
    truth: Tensor | None = None
    kernel: Tensor | None = None
    notes: tuple[str, ...] = ()
    mask: Tensor | None = None
    input_hash: str | None = None
    tilt: Tensor | None = None


class MeasurementSource(Protocol):
    """A list of measurements that are loaded one by one, so that a bad one does not stop the others."""

    ids: Sequence[str]

    def load(self, index: int) -> Sample:
        """Read or make measurement `index`; raises InputError when that cannot be done."""
        ...

    def input_hash(self, index: int) -> str | None:
        """What `load(index).input_hash` would be now, without loading."""
        ...


class Photographs:
    """People's own pictures, taken as they are.

    Args:
        input: file, folder, glob, or a list of these.
        sigma: noise level in [0, 1] units; `None` estimates it from each picture.
        limit: take the first `limit` pictures only.
        crop: side of the centre crop to restore, px; `None` takes the picture whole.
        saturation: value from which a pixel is taken for clipped and left out (`unsaturated`); `None` counts all.
    """

    def __init__(
        self,
        input: str | Sequence[str],
        sigma: float | None = None,
        limit: int | None = None,
        crop: int | None = None,
        saturation: float | None = THRESHOLD,
    ) -> None:
        _check_sigma(sigma)
        self.sigma, self.crop, self.saturation = sigma, crop, saturation
        self._sources = sources(input)[:limit]
        self.ids = [source.id for source in self._sources]

    def load(self, index: int) -> Sample:
        input_hash = self.input_hash(index)  # before it is read, lest one that takes its place pass for it
        picture = self._sources[index].load()
        y = picture.pixels if self.crop is None else centre_crop(picture.pixels, self.crop)
        sigma = estimate_sigma(y) if self.sigma is None else self.sigma
        mask = None if self.saturation is None else unsaturated(y, self.saturation)
        return Sample(self.ids[index], y, sigma, notes=picture.notes, mask=mask, input_hash=input_hash)

    def input_hash(self, index: int) -> str | None:
        return self._sources[index].input_hash()


class SimulatedBlur:
    """Sharp pictures, blurred by a random kernel and noise that depend on the seed and the picture's name alone.

    An operator with a tilt moves their pixels about, too, by a random field.

    Args:
        sources: the sharp pictures.
        law: of the kernels.
        sigma: noise level in [0, 1] units, or the lowest and highest of a log-uniform one; `None` is refused without a
            `peak`, since there is nothing to estimate it from.
        operator: blurs them.
        crop: side of the measurement, cut from the centre, px; `None` keeps the picture whole. For `valid` and
            `unknown` the measurement is that of a larger region: its border is blurred with what lies beyond.
        gray: turn the pictures gray first.
        seed: of kernels, tilts and noise.
        tilt_law: of the tilt fields, for an operator that has one; its `size` becomes that of the picture.
        peak: photons of a white pixel; the noise is then Poisson's, and `sigma` is not used.

    Raises:
        InputError: no noise level; a peak that is not positive; an operator with a tilt but no law of it, or the other
            way round.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        law: KernelLaw,
        sigma: float | Sequence[float] | None,
        operator: BlurOperator | TurbulenceOperator,
        crop: int | None = None,
        gray: bool = False,
        seed: int = 0,
        tilt_law: TiltLaw | None = None,
        peak: float | None = None,
    ) -> None:
        if sigma is None and peak is None:
            raise InputError("Expected a noise level for pictures that are blurred here, got none; set sigma=5/255.")
        self.sigmas, self.peak = None if sigma is None else _sigma_range(sigma), peak
        noise_of(0.0, peak)  # what it refuses, it refuses for all pictures
        _check_tilt_law(tilt_law, operator)
        self.law, self.tilt_law, self.operator = law, tilt_law, operator
        self.crop, self.gray, self.seed = crop, gray, seed
        self._sources = list(sources)
        self.ids = [source.id for source in self._sources]

    def load(self, index: int) -> Sample:
        name, input_hash = self.ids[index], self.input_hash(index)  # as above
        picture = self._sources[index].load()
        kernel = self.true_kernel(name)
        size = tuple(kernel.shape[-2:])
        truth = self._prepare(picture, size)
        params = {"kernel": kernel}
        if self.tilt_law is not None:
            params["tilt"] = replace(self.tilt_law, size=tuple(truth.shape[-2:]))(self._rng(name, "tilt"))
        blurred = self.operator(truth[None], **{key: value[None] for key, value in params.items()})
        generator = torch.Generator().manual_seed(derive_seed(self.seed, name, "noise"))
        sigma = self._sigma(name) if self.peak is None else 0.0
        noise = noise_of(sigma, self.peak)
        y = noise(blurred, generator)

        def seen(whole: Tensor | None) -> Tensor | None:
            return None if whole is None else self.operator.crop_to_frame(whole, kernel_size=size)

        return Sample(
            name,
            y[0],
            sigma or float(noise.level(y)),
            seen(truth),
            kernel,
            picture.notes,
            input_hash=input_hash,
            tilt=seen(params.get("tilt")),
        )

    def input_hash(self, index: int) -> str | None:
        return self._sources[index].input_hash()

    def true_kernel(self, name: str) -> Tensor:
        """`(1, h, w)` that blurs the picture of this name; the picture is not looked at."""
        return self.law(self._rng(name, "kernel"))

    def _rng(self, name: str, purpose: str) -> np.random.Generator:
        return np.random.default_rng(derive_seed(self.seed, name, purpose))

    def _sigma(self, name: str) -> float:
        low, high = self.sigmas
        return low if low == high else float(low * (high / low) ** self._rng(name, "sigma").uniform())

    def _prepare(self, picture: Picture, kernel_size: Size) -> Tensor:
        truth = picture.pixels
        if self.crop is not None:
            truth = centre_crop(truth, self.operator.image_shape((self.crop, self.crop), kernel_size=kernel_size))
        if self.gray and len(truth) == 3:
            truth = luma(truth)
        return truth


def blurred(
    input: str | Sequence[str],
    law: KernelLaw,
    sigma: float | Sequence[float] | None,
    operator: BlurOperator | TurbulenceOperator,
    crop: int | None = None,
    gray: bool = False,
    limit: int | None = None,
    seed: int = 0,
    tilt_law: TiltLaw | None = None,
    peak: float | None = None,
) -> SimulatedBlur:
    """Sharp pictures blurred here: `input` is a data set (`bsd100`), or whatever `sources` accepts."""
    is_name = isinstance(input, str) and input.isidentifier() and input != "sample" and not Path(input).exists()
    is_data_set = isinstance(input, str) and (is_name or (data_root() / input).is_dir())
    found = evaluation_set(input, limit) if is_data_set else sources(input)[:limit]
    return SimulatedBlur(found, law, sigma, operator, crop, gray, seed, tilt_law, peak)


def pictures(
    input: str | Sequence[str],
    law: KernelLaw,
    operator: BlurOperator,
    sigma: float | None = None,
    crop: int | None = None,
    limit: int | None = None,
    seed: int = 0,
    saturation: float | None = THRESHOLD,
    peak: float | None = None,
) -> MeasurementSource:
    """People's pictures as they are; the packaged samples, which are sharp, are blurred here with `law` first."""
    named = input if isinstance(input, list | tuple) else [input]
    samples = [str(name).partition(":")[0] == "sample" for name in named]
    if any(samples) and not all(samples):
        raise InputError("Expected either packaged samples, which are blurred first, or your own pictures, got both.")
    if all(samples) and samples:
        sigma = SAMPLE_SIGMA if sigma is None else sigma
        return blurred(input, law, sigma, operator, crop, limit=limit, seed=seed, peak=peak)
    return Photographs(input, sigma, limit, crop, saturation)


def estimate_sigma(pixels: Tensor) -> float:
    """Noise level of a picture `(C, H, W)` in [0, 1] units: median of the wavelet coefficients, mean over channels.

    Blur leaves little but noise in the finest wavelets, so the estimate (of Donoho and Johnstone, 1994) serves blurred
    pictures well. It is kept above half a level of 8 bits, the rounding that every file has. Coefficients that are
    exactly 0 belong to flat parts, where noise was cut off or never was; channels that have no others are left out.
    """
    import pywt

    details = (np.abs(pywt.dwt2(channel, "db2")[1][2]) for channel in pixels.numpy())
    levels = [float(np.median(detail[detail > 0])) / MEDIAN_OF_GAUSSIAN for detail in details if detail.any()]
    return max(float(np.mean(levels or 0.0)), 0.5 / 255)


def _check_tilt_law(law: TiltLaw | None, operator: BlurOperator | TurbulenceOperator) -> None:
    if "tilt" in operator.params and law is None:
        raise InputError(
            "Expected a law of tilt fields to simulate turbulence with, got none; set data=turbulent or data.tilt_law=."
        )
    if "tilt" not in operator.params and law is not None:
        raise InputError(
            f"Expected no law of tilt fields for {type(operator).__name__}, which has no tilt, got "
            f"{type(law).__name__}; set data.tilt_law=null."
        )


def _sigma_range(sigma: float | Sequence[float]) -> tuple[float, float]:
    """The lowest and highest noise level, both positive and in order; one level is both."""
    levels = (sigma, sigma) if isinstance(sigma, int | float) else tuple(sigma)
    if len(levels) != 2 or levels[0] > levels[1]:
        raise InputError(f"Expected one noise level or the lowest and highest, got {list(levels)}; set data.sigma=.")
    for level in levels:
        _check_sigma(level)
    return levels


def _check_sigma(sigma: float | None) -> None:
    if sigma is not None and not 0 < sigma < 1:
        raise InputError(f"Expected 0 < sigma < 1 in [0, 1] units (5/255 = 0.0196), got {sigma}; set sigma=.")
