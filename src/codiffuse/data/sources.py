"""The pictures a run goes over: files, folders, globs, packaged samples and evaluation sets."""

from __future__ import annotations

import glob
import hashlib
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from codiffuse.data.images import Picture, read_picture
from codiffuse.errors import InputError

SUFFIXES = frozenset(".png .jpg .jpeg .jpe .jfif .tif .tiff .webp .bmp .gif .ppm .pgm .jp2 .avif .npy".split())
DATA_VARIABLE = "CODIFFUSE_DATA"
MAX_NAME_BYTES = 100  # of a stem and of its folder: with the suffix they fit the 255 bytes of a file name
MAX_SUFFIX = 8  # letters of it that a name takes

# Pictures that scikit-image carries inside its package; `sample` alone means the first.
_SAMPLES = (
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
    "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png motorcycle_right.png page.png retina.jpg "
    "rocket.jpg"
).split()


@dataclass(frozen=True)
class Source:
    """A picture that is not read yet.

    Attributes:
        id: Names the picture's folder in the output: unique in its list, safe as a file name.
        path: Where it comes from; None when it is made, not read.
        load: Reads it, and raises InputError when that fails.
    """

    id: str
    path: Path | None
    load: Callable[[], Picture]

    def input_hash(self) -> str | None:
        """Tells a file from another that takes its place; None of what is no file."""
        return None if self.path is None else file_hash(self.path)


def file_hash(path: Path) -> str | None:
    """A short hash of a file's bytes, 12 hexadecimal digits; None when it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=6)).hexdigest()
    except OSError:
        return None


def sources(spec: str | Path | Source | Iterable[str | Path]) -> list[Source]:
    """Finds the pictures that `spec` names, without reading them, so that a bad one does not stop the others.

    Args:
        spec: A file; a folder (its picture files by name, subfolders left out); a glob, in which `**` reaches into
            subfolders; `sample` or `sample:NAME`; or a list of these. A name that exists is never taken as a glob
            (but `sample` as a file is `./sample`), and a file named twice counts once. A `Source` stands for itself.

    Raises:
        InputError: Nothing there, no picture in it, or an unknown sample.
    """
    if isinstance(spec, Source):
        return [spec]
    specs = list(spec) if isinstance(spec, Iterable) and not isinstance(spec, str) else [spec]
    if not all(isinstance(part, str | Path) for part in specs):
        raise InputError(f"input: expected a file, folder, glob or `sample`, got {spec!r}; name one or a list")
    if not specs:
        raise InputError("input: expected a file, folder, glob or `sample`, got an empty list; name at least one")
    paths = list(dict.fromkeys(chain.from_iterable(map(_paths, specs))))
    return [Source(name, path, partial(read_picture, path)) for name, path in zip(_ids(paths), paths, strict=True)]


def sample_names() -> list[str]:
    """Names for `sample:NAME`."""
    return sorted(_sample_files())


def data_root() -> Path:
    """Folder of the data sets: the environment variable CODIFFUSE_DATA, or `data` where the program runs."""
    return Path(os.environ.get(DATA_VARIABLE) or "data").expanduser()


def evaluation_set(name: str, limit: int | None = None) -> list[Source]:
    """Pictures of the data set `name`, a folder below `data_root()`, by file name.

    Args:
        name: Name of the folder, such as `bsd100`.
        limit: Take the first `limit` pictures only.

    Raises:
        InputError: No such folder, no picture in it, or `limit` below 1.
    """
    folder = data_root() / name
    if not folder.is_dir():
        raise InputError(
            f"data set {name}: expected the folder {folder.absolute()}, which does not exist; "
            f"set {DATA_VARIABLE} to the folder that holds {name}"
        )
    if limit is not None and limit < 1:
        raise InputError(f"data set {name}: expected a limit of at least 1, got {limit}; leave it out to take all")
    return sources(folder)[:limit]


def centre_crop(pixels: Tensor, size: int | tuple[int, int]) -> Tensor:
    """The middle `size` (height, width; one number for a square) of (..., H, W).

    Raises:
        InputError: The picture is smaller than the crop.
    """
    height, width = (size, size) if isinstance(size, int) else size
    top, left = (pixels.shape[-2] - height) // 2, (pixels.shape[-1] - width) // 2
    if top < 0 or left < 0:
        got = f"{pixels.shape[-2]} x {pixels.shape[-1]}"
        raise InputError(f"crop: expected at least {height} x {width} pixels, got {got}; choose a smaller crop")
    return pixels[..., top : top + height, left : left + width]


def downscale(pixels: Tensor, longest: int) -> Tensor:
    """(C, H, W) reduced, with antialiasing and in proportion, to at most `longest` pixels on its longer side."""
    height, width = pixels.shape[-2:]
    if max(height, width) <= longest:
        return pixels
    scale = longest / max(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    return F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]


def _paths(spec: str | Path) -> list[Path]:
    if spec == "":
        raise InputError("input: expected a file, folder, glob or `sample`, got an empty string; name one")
    if isinstance(spec, str) and (spec == "sample" or spec.startswith("sample:")):
        return [_sample(spec.removeprefix("sample").removeprefix(":"))]
    path = Path(os.path.expanduser(spec))
    if os.path.isdir(path):
        return _pictures(path.iterdir(), f"{path}: expected picture files in this folder")
    if os.path.exists(path):
        return [path]
    if any(wildcard in str(path) for wildcard in "*?["):
        # Folders that exist keep their names, brackets and all; the pattern begins where they end.
        folder = next(parent for parent in path.parents if os.path.isdir(parent))
        matches = glob.glob(str(path.relative_to(folder)), root_dir=folder, recursive=True)
        return _pictures((folder / match for match in matches), f"{path}: expected picture files that match")
    raise InputError(f"{path}: expected a file, folder, glob or `sample`, but nothing is there; check the path")


def _pictures(candidates: Iterable[Path], expected: str) -> list[Path]:
    """The picture files among `candidates`, sorted; hidden ones are seldom what their suffix says and left out."""
    files = [path for path in candidates if path.is_file() and not path.name.startswith(".")]
    pictures = sorted(path for path in files if path.suffix.lower() in SUFFIXES)
    if not pictures:
        suffixes = " ".join(sorted(SUFFIXES))
        raise InputError(f"{expected} ({suffixes}), got none among {len(files)} files; FOLDER/**/* reaches subfolders")
    return pictures


def _sample(name: str) -> Path:
    samples = _sample_files()
    path = samples.get(name or Path(_SAMPLES[0]).stem)
    if path is None:
        raise InputError(f"sample:{name}: expected one of {', '.join(sorted(samples))}; choose one of these")
    return path


def _sample_files() -> dict[str, Path]:
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    return {Path(name).stem: folder / name for name in _SAMPLES if (folder / name).is_file()}


def _ids(paths: list[Path]) -> list[str]:
    """One name a path: its stem; where stems agree with the suffix, or the parent folder, or both, or a number.

    What several paths would be called, none of them is, so a name does not move to another file that comes along.
    """
    parts = [(_safe(path.stem), _suffix(path), _safe(path.absolute().parent.name)) for path in paths]
    ids: dict[int, str] = {}
    taken: set[str] = set()  # without case: some file systems do not tell A.png from a.png
    for chosen in ((0,), (0, 1), (0, 2), (0, 1, 2)):
        names = ["-".join(filter(None, (part[each] for each in chosen))) for part in parts]
        counts = Counter(name.casefold() for name in names)
        free = {key for key, number in counts.items() if number == 1} - taken
        new = {i: name for i, name in enumerate(names) if i not in ids and name.casefold() in free}
        ids |= new
        taken |= {name.casefold() for name in new.values()}
    for index, name in enumerate(names):
        if index not in ids:
            candidates = chain([name], (f"{name}-{number}" for number in count(2)))
            ids[index] = next(candidate for candidate in candidates if candidate.casefold() not in taken)
            taken.add(ids[index].casefold())
    return [ids[index] for index in range(len(paths))]


def _suffix(path: Path) -> str:
    return _safe(path.suffix[1:].lower())[:MAX_SUFFIX] if path.suffix else ""


def _safe(name: str) -> str:
    """Letters of any script, digits, `_`, `-` and inner dots; all else becomes `_`."""
    safe = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", name))
    return safe.encode()[:MAX_NAME_BYTES].decode(errors="ignore").strip(".") or "picture"
