"""Runs a restorer over measurements: batches of equal shape, resumes, survives a bad image, writes as it goes."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from codiffuse.data.measurements import MeasurementSource, Sample
from codiffuse.errors import InputError
from codiffuse.inference.restorer import Restorer
from codiffuse.inference.writers import Outcome, RunFolder

logger = logging.getLogger(__name__)


@dataclass
class Runner:
    """One inference run.

    Attributes:
        restorer: what restores a batch.
        folder: where results go; finished images in it are skipped, unless their file has become another one.
        batch_size: images of one shape restored together.
    """

    restorer: Restorer
    folder: RunFolder
    batch_size: int = 1

    def run(self, source: MeasurementSource) -> list[dict[str, Any]]:
        """Restore what is not done yet; returns all rows in the source's order."""
        done = self._unchanged(source)
        pending = [index for index, name in enumerate(source.ids) if name not in done]
        if len(pending) < len(source.ids):
            logger.info("%d of %d images are done already.", len(source.ids) - len(pending), len(source.ids))
        rows = dict(done)
        # Without a terminal there is a line in the log for each image instead of the bar.
        with tqdm(total=len(pending), desc=self.restorer.name, unit="image", dynamic_ncols=True, disable=None) as bar:
            for batch in self._batches(source, pending, rows, bar):
                for outcome in self.restorer(batch, show=self._shower(bar)):
                    self._keep(outcome, rows, bar)
        return [rows[name] for name in source.ids if name in rows]

    def _unchanged(self, source: MeasurementSource) -> dict[str, dict[str, Any]]:
        """Rows of the images that are done, without those whose picture is another one by now."""
        done = self.folder.done()
        for index, name in enumerate(source.ids):
            if name in done and done[name].get("input_hash") != source.input_hash(index):
                logger.info("%s: the picture has changed since it was restored; it is restored again.", name)
                del done[name]
        return done

    def _batches(
        self, source: MeasurementSource, pending: Sequence[int], rows: dict[str, dict], bar: tqdm
    ) -> Iterator[list[Sample]]:
        """Runs of consecutive measurements of one shape; what cannot be read becomes a failed row."""
        batch: list[Sample] = []
        for index in pending:
            try:
                sample = source.load(index)
            except InputError as error:
                self._keep(self.restorer.failed(source.ids[index], str(error)), rows, bar)
                continue
            for note in sample.notes:
                logger.info("%s: %s.", sample.id, note)
            if batch and (len(batch) == self.batch_size or _shapes(sample) != _shapes(batch[0])):
                yield batch
                batch = []
            batch.append(sample)
        if batch:
            yield batch

    def _keep(self, outcome: Outcome, rows: dict[str, dict], bar: tqdm) -> None:
        self.folder.write(outcome)
        rows[outcome.id] = outcome.row
        bar.update()
        if outcome.row["status"] != "ok":
            logger.error("%s %s", outcome.id, outcome.row["status"])
        elif bar.disable:
            logger.info("%s restored in %.1f s.", outcome.id, outcome.row["seconds"])

    def _shower(self, bar: tqdm):
        return lambda info, residual: bar.set_postfix_str(
            f"step {info.number}/{info.total}, residual {residual:.2f} sigma"
        )


def _shapes(sample: Sample) -> tuple[torch.Size, torch.Size | None, bool]:
    """What has to agree in a batch; a mask is in it because without one there are closed forms."""
    return sample.y.shape, None if sample.kernel is None else sample.kernel.shape, sample.mask is None
