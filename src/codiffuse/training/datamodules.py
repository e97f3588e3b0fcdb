"""Data modules: counted streams, so that a resumed run sees exactly what it would have seen."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from codiffuse.data.crops import CropDataset, PictureStore
from codiffuse.data.sources import data_root
from codiffuse.errors import InputError


class CountedSampler(Sampler[int]):
    """Sample numbers start, start + 1, ... of one rank, without end."""

    def __init__(self, start: int, rank: int = 0, world_size: int = 1) -> None:
        self.start, self.rank, self.world_size = start, rank, world_size

    def __iter__(self) -> Iterator[int]:
        index = self.start + self.rank
        while True:
            yield index
            index += self.world_size


class StreamDataModule(pl.LightningDataModule):
    """A counted training stream and a fixed validation set.

    Args:
        train: endless training samples by number.
        validation: the fixed samples on which progress is measured.
        batch_size: of each rank.
        num_workers: loader processes; 0 decodes in the training process.
    """

    def __init__(self, train: Dataset, validation: Dataset, batch_size: int = 16, num_workers: int = 0) -> None:
        super().__init__()
        self.train, self.validation = train, validation
        self.batch_size, self.num_workers = batch_size, num_workers

    def train_dataloader(self) -> DataLoader:
        trainer = self.trainer
        # Lightning asks for the loader after it has restored a checkpoint: the stream starts where the run stopped.
        seen = trainer.global_step * trainer.accumulate_grad_batches * self.batch_size * trainer.world_size
        sampler = CountedSampler(seen, trainer.global_rank, trainer.world_size)
        return self._loader(self.train, sampler=sampler, drop_last=True)

    def val_dataloader(self) -> DataLoader:
        return self._loader(self.validation)

    def _loader(self, dataset: Dataset, **options) -> DataLoader:
        workers = {"num_workers": self.num_workers, "persistent_workers": self.num_workers > 0}
        return DataLoader(
            dataset, batch_size=self.batch_size, pin_memory=torch.cuda.is_available(), **workers, **options
        )


def image_crops(
    root: str,
    crop: int = 64,
    scale: tuple[float, float] = (0.5, 1.0),
    gray: float = 0.1,
    holdout: int = 20,
    validation_crop: int = 128,
    batch_size: int = 16,
    num_workers: int = 0,
    cache_mib: int = 2048,
    seed: int = 0,
) -> StreamDataModule:
    """Random crops of a folder or tar of pictures; the last `holdout` pictures serve validation only.

    `root` is a path, or a name below `data_root()`.
    """
    path = Path(root).expanduser()
    store = PictureStore(path if path.exists() else data_root() / root, cache_mib)
    if not 0 < holdout < len(store):
        raise InputError(f"Expected holdout between 1 and {len(store) - 1}, got {holdout}; set data.holdout.")
    training = CropDataset(store, crop, tuple(scale), gray, seed, used=range(len(store) - holdout))
    return StreamDataModule(training, CentreCrops(store, holdout, validation_crop), batch_size, num_workers)


class CentreCrops(Dataset):
    """Centre crops of the last `count` pictures of a store, as large as they allow up to `crop`."""

    def __init__(self, store: PictureStore, count: int, crop: int) -> None:
        self.store, self.count, self.crop = store, count, crop

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Tensor:
        picture = self.store[len(self.store) - self.count + index]
        height, width = picture.shape[-2:]
        side = min(self.crop, height, width)
        top, left = (height - side) // 2, (width - side) // 2
        return picture[:, top : top + side, left : left + side].float() / 255


class Simulated(Dataset):
    """Kernels or tilt fields drawn on the fly: sample number `index` depends on the seed and the index alone."""

    def __init__(self, law: Callable, seed: int = 0, length: int = 2**40) -> None:
        self.law, self.seed, self.length = law, seed, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        import numpy as np

        return self.law(np.random.default_rng((self.seed, index)))


def simulated(
    law: Callable, validation_samples: int = 256, batch_size: int = 64, num_workers: int = 0, seed: int = 0
) -> StreamDataModule:
    """An endless stream of simulated kernels or tilt fields; validation draws its own, by another seed."""
    validation = Simulated(law, seed + 1_000_003, validation_samples)
    return StreamDataModule(Simulated(law, seed), validation, batch_size, num_workers)
