"""Training crops: a counted, endless stream from a folder or a tar of pictures.

Sample number `index` depends on the seed and the index alone, so a run that resumes at sample N sees what an
uninterrupted run would have seen, whatever the number of workers.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset

from codiffuse.errors import InputError

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")


@dataclass
class PictureStore:
    """Pictures of a folder (searched recursively) or a tar file, decoded once a process and kept as 8-bit RGB.

    Attributes:
        root: folder or `.tar`.
        cache_mib: memory for decoded pictures; those beyond it are decoded again at each use.
    """

    root: Path
    cache_mib: int = 2048
    _names: list[str] = field(init=False, repr=False)
    _cache: dict[int, Tensor] = field(init=False, default_factory=dict, repr=False)
    _cached_bytes: int = field(init=False, default=0, repr=False)
    _tar: tarfile.TarFile | None = field(init=False, default=None, repr=False)

    def __post_init__(self) -> None:
        self.root = Path(self.root)
        if self.root.is_dir():
            found = sorted(p for p in self.root.rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
            self._names = [str(p) for p in found]
        elif self.root.is_file() and tarfile.is_tarfile(self.root):
            with tarfile.open(self.root) as tar:
                members = [m.name for m in tar.getmembers() if m.isfile()]
            self._names = sorted(m for m in members if Path(m).suffix.lower() in PICTURE_SUFFIXES)
        else:
            raise InputError(f"Expected a folder or tar of pictures, found none at {self.root}; set CODIFFUSE_DATA.")
        if not self._names:
            raise InputError(f"Expected pictures ({', '.join(PICTURE_SUFFIXES)}) in {self.root}, found none.")

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index: int) -> Tensor:
        """Picture `index` as uint8 `(3, H, W)`."""
        if index not in self._cache:
            picture = self._decode(self._names[index])
            if self._cached_bytes + picture.numel() > self.cache_mib * 2**20:
                return picture
            self._cache[index] = picture
            self._cached_bytes += picture.numel()
        return self._cache[index]

    def _decode(self, name: str) -> Tensor:
        from PIL import Image

        try:
            with Image.open(self._opened(name)) as image:
                if image.mode.startswith("I;16"):
                    # Pillow's own conversion of 16 bits saturates instead of scaling.
                    gray = torch.from_numpy((np.array(image) // 257).astype(np.uint8))
                    return gray.expand(3, -1, -1).contiguous()
                return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).contiguous()
        except (OSError, SyntaxError) as error:
            raise InputError(f"Expected a readable picture, got {name} of {self.root} ({error}); remove it.") from error

    def _opened(self, name: str) -> str | io.BytesIO:
        if self.root.is_dir():
            return name
        self._tar = self._tar or tarfile.open(self.root)  # stays open for the life of the worker
        return io.BytesIO(self._tar.extractfile(name).read())

    def __getstate__(self) -> dict:
        # A worker process opens its own tar handle and fills its own cache.
        return {**self.__dict__, "_tar": None, "_cache": {}, "_cached_bytes": 0}


class CropDataset(Dataset):
    """Random augmented crops in [0, 1], by sample number.

    Args:
        store: where the pictures come from.
        crop: side of a crop, px.
        scale: range of the random reduction applied before cropping (1 = none); drawn log-uniformly.
        gray: share of crops turned to gray (three equal channels), so that the prior serves gray pictures as well.
        seed: with the sample number, decides everything.
        length: number of samples the stream pretends to have.
        used: which pictures of the store; all of them by default.
    """

    def __init__(
        self,
        store: PictureStore,
        crop: int = 64,
        scale: tuple[float, float] = (0.5, 1.0),
        gray: float = 0.1,
        seed: int = 0,
        length: int = 2**40,
        used: Sequence[int] | None = None,
    ) -> None:
        if seed < 0:
            raise InputError(f"Expected seed >= 0, got {seed}; set seed=.")
        if crop < 8 or not 0 < scale[0] <= scale[1] or not 0 <= gray <= 1:
            raise InputError(
                "Expected crop >= 8, scale (low, high) with 0 < low <= high, gray in [0, 1]; "
                f"got {crop}, {scale}, {gray}."
            )
        self.store, self.crop, self.scale, self.gray = store, crop, scale, gray
        self.seed, self.length = seed, length
        self.used = range(len(store)) if used is None else used

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Tensor:
        """Sample number `index`: float32 `(3, crop, crop)`."""
        rng = np.random.default_rng((self.seed, index))
        picture = self.store[self.used[int(rng.integers(len(self.used)))]]
        crop = self._scaled_crop(picture, rng)
        if rng.random() < 0.5:
            crop = crop.flip(-1)
        if rng.random() < self.gray:
            crop = luma(crop).expand(3, -1, -1)
        return crop.contiguous()

    def _scaled_crop(self, picture: Tensor, rng: np.random.Generator) -> Tensor:
        height, width = picture.shape[-2:]
        smallest = self.crop / min(height, width)
        low, high = (max(s, smallest) for s in self.scale)
        scale = float(np.exp(rng.uniform(np.log(low), np.log(high)))) if high > low else high
        side = min(round(self.crop / scale), height, width)
        top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
        region = picture[:, top : top + side, left : left + side].float() / 255
        if side == self.crop:
            return region
        size = (self.crop, self.crop)
        return F.interpolate(region[None], size, mode="bicubic", antialias=True)[0].clamp(0, 1)


def luma(picture: Tensor) -> Tensor:
    """`(..., 3, H, W)` -> `(..., 1, H, W)` by the Rec. 601 weights."""
    return (picture * picture.new_tensor([0.299, 0.587, 0.114])[:, None, None]).sum(-3, keepdim=True)
