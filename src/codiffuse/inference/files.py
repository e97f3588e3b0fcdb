"""Files that are whole or absent, whenever the program ends, and JSON that every reader accepts."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from codiffuse.errors import InputError


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in a folder that exists: the whole of it, or nothing if the program ends on the way."""
    # In the same folder, because a rename is atomic only within a file system.
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        partial.write_bytes(content)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def writing_to(folder: Path) -> Iterator[None]:
    """Makes an `InputError` of what the file system refuses while a run folder is made or written."""
    try:
        yield
    except OSError as error:
        raise unwritable(error, folder) from error


def unwritable(error: OSError, folder: str | Path = "the folder of the run") -> InputError:
    """The error in one line: which path, why, and the setting that mends it."""
    path, reason = error.filename or folder, error.strerror or str(error)
    return InputError(f"Expected a run folder that can be written, got {path}: {reason}; set hydra.run.dir=FOLDER.")


def null_for_nan(value: Any) -> Any:
    """The same numbers, texts, lists and dicts, with `None` for NaN and infinity, which JSON does not have."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: null_for_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [null_for_nan(item) for item in value]
    return value


def to_json(value: Any, indent: int | None = None) -> bytes:
    """One JSON value and a line end, ASCII only."""
    return (json.dumps(null_for_nan(value), indent=indent, allow_nan=False) + "\n").encode()
