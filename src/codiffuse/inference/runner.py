"""Runs a method over measurements: batches of equal shape, resumes, survives a bad image, writes as it goes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from tqdm import tqdm

from codiffuse.data.measurements import MeasurementSource, Sample
from codiffuse.errors import InputError
from codiffuse.inference.progress import StepRecorder
from codiffuse.inference.scoring import Scorer
from codiffuse.inference.writers import Outcome, RunFolder
from codiffuse.methods.base import Measurement, Method, Restoration
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import GeneratorNoise, derive_seed

logger = logging.getLogger(__name__)


@dataclass
class Runner:
    """One inference run.

    Attributes:
        method: what restores.
        name: of the method, for the rows.
        operator: A, without its unknown parameters.
        folder: where results go; finished images in it are skipped.
        scorer: makes the metrics of a row.
        device: where the method runs.
        seed: with an image's id it decides all of the sampler's random numbers.
        batch_size: images of one shape restored together.
        num_frames: states an image kept for the animated trace.
    """

    method: Method
    name: str
    operator: BlurOperator
    folder: RunFolder
    scorer: Scorer
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seed: int = 0
    batch_size: int = 1
    num_frames: int = 24

    def run(self, source: MeasurementSource) -> list[dict[str, Any]]:
        """Restore what is not done yet; returns all rows in the source's order."""
        reason = self.method.supports(self.operator)
        if reason:
            raise InputError(f"Expected an operator that {self.name} supports: it {reason}; choose another method.")
        done = self.folder.done()
        pending = [index for index, name in enumerate(source.ids) if name not in done]
        if len(pending) < len(source.ids):
            logger.info("%d of %d images are done already.", len(source.ids) - len(pending), len(source.ids))
        rows = dict(done)
        # Without a terminal there is a line in the log for each image instead of the bar.
        with tqdm(total=len(pending), desc=self.name, unit="image", dynamic_ncols=True, disable=None) as bar:
            for batch in self._batches(source, pending, rows, bar):
                for row in self._restore(batch, bar):
                    rows[row["id"]] = row
                    if bar.disable and row["status"] == "ok":
                        logger.info("%s restored in %.1f s.", row["id"], row["seconds"])
                bar.update(len(batch))
        return [rows[name] for name in source.ids if name in rows]

    def _batches(
        self, source: MeasurementSource, pending: Sequence[int], rows: dict[str, dict], bar: tqdm
    ) -> Iterator[list[Sample]]:
        """Runs of consecutive measurements of one shape; what cannot be read becomes a failed row."""
        batch: list[Sample] = []
        for index in pending:
            try:
                sample = source.load(index)
            except InputError as error:
                rows[source.ids[index]] = self._fail(source.ids[index], str(error))
                bar.update()
                continue
            for note in sample.notes:
                logger.info("%s: %s.", sample.id, note)
            if batch and (len(batch) == self.batch_size or _shapes(sample) != _shapes(batch[0])):
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch

    def _restore(self, batch: list[Sample], bar: tqdm) -> list[dict[str, Any]]:
        """Restore a batch; if it fails as a whole, its images are tried one by one."""
        started = time.perf_counter()
        try:
            measurement = self._measurement(batch)
            recorder = StepRecorder(measurement, self._shower(bar), self.num_frames)
            seeds = [derive_seed(self.seed, sample.id, "sampler") for sample in batch]
            result = self.method(measurement, noise=GeneratorNoise(seeds), callback=recorder)
        except (InputError, RuntimeError, MemoryError) as error:
            if not isinstance(error, InputError) and not _is_out_of_memory(error):
                raise
            if len(batch) > 1:
                return [row for sample in batch for row in self._restore([sample], bar)]
            return [self._fail(batch[0].id, _reason(error), batch[0])]
        seconds = (time.perf_counter() - started) / len(batch)
        return [self._write(sample, result, index, seconds, recorder) for index, sample in enumerate(batch)]

    def _measurement(self, batch: list[Sample]) -> Measurement:
        known = {}
        if self.method.needs:
            if any(sample.kernel is None for sample in batch):
                raise InputError(f"Expected the true kernel for {self.name}, got none; use a blind method.")
            known = {"kernel": torch.stack([sample.kernel for sample in batch]).to(self.device)}
        y = torch.stack([sample.y for sample in batch]).to(self.device)
        sigma = torch.tensor([sample.sigma for sample in batch], device=self.device)
        return Measurement(y, GaussianNoise(sigma), self.operator, known)

    def _shower(self, bar: tqdm):
        return lambda info, residual: bar.set_postfix_str(
            f"step {info.number}/{info.total}, residual {residual:.2f} sigma"
        )

    def _write(
        self, sample: Sample, result: Restoration, index: int, seconds: float, recorder: StepRecorder
    ) -> dict[str, Any]:
        image = result.image[index].cpu()
        kernel = result.params["kernel"][index].cpu()
        status = result.status[index]
        if status == "ok" and not bool(torch.isfinite(image).all() and torch.isfinite(kernel).all()):
            status = "failed: NaN or infinite values"
        row: dict[str, Any] = {
            "id": sample.id,
            "method": self.name,
            "sigma": sample.sigma,
            "status": status,
            "seconds": round(seconds, 3),
            "nfe": result.nfe,
        }
        if status == "ok":
            row |= self.scorer(sample, image, kernel)
        else:
            logger.warning("%s %s", sample.id, status)
        outcome = Outcome(
            id=sample.id,
            row=row,
            y=sample.y,
            image=image,
            kernel=kernel,
            samples=result.samples[index].cpu(),
            truth=sample.truth,
            true_kernel=sample.kernel,
            trace=recorder.trace(index),
            frames=recorder.frames(index),
        )
        self.folder.write(outcome)
        return row

    def _fail(self, name: str, reason: str, sample: Sample | None = None) -> dict[str, Any]:
        logger.error("%s failed: %s", name, reason)
        row = {
            "id": name,
            "method": self.name,
            "sigma": sample.sigma if sample else None,
            "status": f"failed: {reason}",
        }
        self.folder.write(Outcome(id=name, row=row, y=sample.y if sample else None))
        return row


def _shapes(sample: Sample) -> tuple[torch.Size, torch.Size | None]:
    return sample.y.shape, None if sample.kernel is None else sample.kernel.shape


def _is_out_of_memory(error: Exception) -> bool:
    """On a GPU torch has a class for it; on the CPU the allocator's message is all there is."""
    return isinstance(error, torch.cuda.OutOfMemoryError | MemoryError) or "allocate memory" in str(error)


def _reason(error: Exception) -> str:
    if _is_out_of_memory(error):
        return "out of memory; use a smaller image, batch_size=1, or device=cpu"
    return str(error)
