"""Restores a batch of measurements with a method and says what came out; keeps no files."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any

import torch
from torch import Tensor

from codiffuse.data.measurements import Sample
from codiffuse.errors import InputError
from codiffuse.inference.diagnostics import diagnose
from codiffuse.inference.progress import StepRecorder
from codiffuse.inference.scoring import Scorer
from codiffuse.inference.writers import Outcome
from codiffuse.methods.base import Callback, Measurement, Method, Restarts, Restoration, StepInfo, is_blind
from codiffuse.methods.coarse import downsampled
from codiffuse.metrics.kernel import mnc
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import noise_of
from codiffuse.operators.operator import Operator
from codiffuse.randomness import GeneratorNoise, derive_seed


@dataclass
class Restorer:
    """A method made ready for measurements: the one place where a restoration happens, whoever asks for it.

    Attributes:
        method: what restores.
        name: of the method, for the rows.
        operator: A, without its unknown parameters.
        scorer: makes the metrics of a row.
        device: where the method runs.
        seed: with an image's id it decides all of the sampler's random numbers.
        num_frames: states an image kept for the animated trace.
        peak: photons of a white pixel, for methods that know photon noise; `None` is white Gaussian noise of each
            sample's level.

    Raises:
        InputError: the method cannot use the operator, or photon noise.
    """

    method: Method
    name: str
    operator: Operator
    scorer: Scorer
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    num_frames: int = 24
    peak: float | None = None

    def __post_init__(self) -> None:
        reason = self.method.supports(self.operator)
        if reason:
            raise InputError(f"Expected an operator that {self.name} supports: it {reason}; choose another method.")
        if self.peak is not None and not getattr(self.method, "knows_photon_noise", False):
            raise InputError(
                f"Expected a method that knows photon noise for noise=poisson, got {self.name}; set pipeline=null and "
                "method=blind_dps, dps (which is told the kernel) or ilvr, or noise=gaussian."
            )

    def __call__(
        self,
        batch: Sequence[Sample],
        *,
        show: Callable[[StepInfo, float], None] | None = None,
        callback: Callback | None = None,
    ) -> Iterator[Outcome]:
        """Restore a batch of one shape; if it fails as a whole, its images are tried one by one.

        Args:
            batch: measurements whose `y`, and `kernel` where known, have equal shapes.
            show: called now and then with a step and its residual (rms over sigma, mean of the batch).
            callback: called after each step.

        Yields:
            One outcome a measurement, in order. What was refused, or found no memory, has a row that says so and no
            image.
        """
        started = time.perf_counter()
        try:
            measurement = self._measurement(batch)
            recorder = StepRecorder(measurement, show, self.num_frames)
            seeds = [derive_seed(self.seed, sample.id, "sampler") for sample in batch]
            called = recorder if callback is None else lambda info: (recorder(info), callback(info))
            result = self.method(measurement, noise=GeneratorNoise(seeds), callback=called)
        except (InputError, RuntimeError, MemoryError) as error:
            if not isinstance(error, InputError) and not _is_out_of_memory(error):
                raise
            reason = _reason(error)
        else:
            seconds = (time.perf_counter() - started) / len(batch)
            for index, sample in enumerate(batch):
                yield self._outcome(sample, result, index, seconds, recorder)
            return
        # Out of the handler, so that the error, and with it what its frames hold in memory, is gone.
        if len(batch) == 1:
            yield self.failed(batch[0].id, reason, batch[0])
        else:
            for sample in batch:
                yield from self([sample], show=show, callback=callback)

    def failed(self, name: str, reason: str, sample: Sample | None = None) -> Outcome:
        """The outcome of an image that could not be restored, or not even be read."""
        row = {
            "id": name,
            "method": self.name,
            "sigma": sample.sigma if sample else None,
            "status": f"failed: {reason}",
            "notes": list(sample.notes) if sample else [],
        } | self._photons()
        return Outcome(id=name, row=row, y=sample.y if sample else None)

    def _photons(self) -> dict[str, Any]:
        """What a row says of its noise where that is not white and Gaussian."""
        return {} if self.peak is None else {"noise": "poisson", "peak": float(self.peak)}

    def _measurement(self, batch: Sequence[Sample]) -> Measurement:
        known = {}
        for name in self.operator.params if self.method.needs else ():
            true = [getattr(sample, name, None) for sample in batch]
            if any(value is None for value in true):
                raise InputError(f"Expected the true {name} for {self.name}, got none; use a blind method.")
            known[name] = torch.stack(true).to(self.device)
        y = torch.stack([sample.y for sample in batch]).to(self.device)
        sigma = torch.tensor([sample.sigma for sample in batch], device=self.device)
        mask = None  # where all pixels count there are closed forms
        if any(sample.mask is not None for sample in batch):
            masks = [torch.ones_like(sample.y[:1]) if sample.mask is None else sample.mask for sample in batch]
            mask = torch.stack(masks).to(self.device)
        return Measurement(y, noise_of(sigma, self.peak), self.operator, known, mask)

    def _outcome(
        self, sample: Sample, result: Restoration, index: int, seconds: float, recorder: StepRecorder
    ) -> Outcome:
        image, params = result.image[index].cpu(), self._within_frame(_params_of(result, index))
        status = result.status[index]
        if status == "ok" and not all(bool(torch.isfinite(part).all()) for part in (image, *params.values())):
            status = "failed: NaN or infinite values"
        row: dict[str, Any] = {
            "id": sample.id,
            "method": self.name,
            "sigma": sample.sigma,
            "status": status,
            "seconds": round(seconds, 3),
            "nfe": int(result.nfe[index]) if isinstance(result.nfe, Tensor) else result.nfe,
            "input_hash": sample.input_hash,
            "notes": list(sample.notes),
        } | self._photons()
        if result.step_factor is not None:
            row["step_factor"] = float(result.step_factor[index])
        found: dict[str, Any] = {}
        if status == "ok":
            row |= self.scorer(sample, image, params)
            judged, found = self._judge(sample, result, index)
            row |= judged
        return Outcome(
            id=sample.id,
            row=row,
            y=sample.y,
            image=image,
            kernel=params["kernel"],
            tilt=params.get("tilt"),
            samples=result.samples[index].cpu(),
            origin="sharp" if result.is_sharp else "given" if self.method.needs else "found",
            mask=sample.mask,
            truth=sample.truth,
            true_kernel=sample.kernel,
            true_tilt=sample.tilt,
            trace=recorder.trace(index),
            frames=recorder.frames(index),
            **found,
        )

    def _within_frame(self, params: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same parameters, the tilt for the pixels of the restored image only."""
        if "tilt" not in params:
            return params
        size = tuple(params["kernel"].shape[-2:])
        return params | {"tilt": self.operator.crop_to_frame(params["tilt"], kernel_size=size)}

    def _judge(self, sample: Sample, result: Restoration, index: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """What speaks for and against a restoration, without the truth: for its row, and for its outcome."""
        canvas, params = result.canvas()[index].cpu(), _params_of(result, index)
        kernel = params["kernel"]
        predicted = self.operator(canvas[None], **{name: value[None] for name, value in params.items()})
        found: dict[str, Any] = {"residual": sample.y - predicted[0]}
        # A kernel that was not looked for needs no judgement, and what is known of judging is about blurs.
        if not is_blind(self.method) or not isinstance(self.operator, BlurOperator):
            return {}, found
        row: dict[str, Any] = {}
        restarts = windows = None
        if result.restarts is not None:
            restarts = Restarts(
                result.restarts.kernels[index].cpu(), result.restarts.residuals[index].cpu(), result.restarts.factor
            )
            found |= {"restart_kernels": restarts.kernels, "restart_residuals": restarts.residuals.tolist()}
            row["restart_matches"] = _matches(kernel, restarts)
        if result.windows is not None:
            if len(result.windows.places) > 1:
                windows = result.windows.kernels.cpu()
            if any((place.height, place.width) != sample.y.shape[-2:] for place in result.windows.places):
                found["windows"] = [astuple(place) for place in result.windows.places]
        used = sample.sigma if result.noise_level is None else float(result.noise_level[index])
        diagnosis = diagnose(
            sample.y,
            canvas,
            kernel,
            sample.sigma,
            self.operator,
            restarts=restarts,
            mask=sample.mask,
            window_kernels=windows,
            sigma_used=used,
            is_sharp=result.is_sharp,
        )
        features = {f"feature_{name}": value for name, value in diagnosis.features.items()}
        row |= {"sigma_used": used, "trust": diagnosis.trust, "flags": list(diagnosis.flags)}
        return row | features, found


def _params_of(result: Restoration, index: int) -> dict[str, Tensor]:
    """Parameters of one image of a batch, on the CPU."""
    return {name: value[index].cpu() for name, value in result.params.items()}


def _matches(kernel: Tensor, restarts: Restarts) -> list[float | None]:
    """MNC of where each run ended with the kernel `(1, h, w)` that was kept; `None` of a run that failed."""
    kept = downsampled(kernel[None], restarts.factor)
    return [
        round(float(mnc(found[None, None], kept)), 3) if math.isfinite(residual) else None
        for found, residual in zip(restarts.kernels, restarts.residuals.tolist(), strict=True)
    ]


def _is_out_of_memory(error: Exception) -> bool:
    """On a GPU torch has a class for it; on the CPU the allocator's message is all there is."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _reason(error: Exception) -> str:
    if _is_out_of_memory(error):
        return "out of memory; use a smaller image, batch_size=1, or device=cpu"
    return str(error)
