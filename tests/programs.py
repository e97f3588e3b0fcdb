"""Calling the command line in a test, and what it leaves and says."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

# A single run of the method, on the whole picture, where the FFT solves everything.
QUICK = ["pipeline=null", "boundary=circular", "kernel_size=9", "method.process.num_steps=2", "lpips=false"]


def once(settings) -> list[str]:
    """A single run of Fast EM, unless the settings name a method."""
    return [] if any(str(setting).startswith("method=") for setting in settings) else ["method=fast_em_once"]


@dataclass(frozen=True)
class Ended:
    """How a program ended."""

    code: int
    out: str
    err: str

    def rows(self) -> list[dict]:
        """The lines of `results.jsonl`."""
        return [json.loads(line) for line in (self.folder / "results.jsonl").read_text().splitlines()]

    @property
    def folder(self) -> Path:
        """The run folder that it names."""
        page = next(line for line in self.out.splitlines() if line.startswith("report:"))
        return Path(page.removeprefix("report:").strip()).parent


def run(entry: Callable[[], None], *arguments: object) -> Ended:
    """Calls an entry point as if `arguments` stood on the command line."""
    root, argv = logging.getLogger(), sys.argv
    handlers, level = root.handlers[:], root.level
    out, err = io.StringIO(), io.StringIO()
    code, last_words = 0, ""
    sys.argv = ["program", *map(str, arguments)]
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            entry()
    except SystemExit as end:  # what the interpreter makes of it
        code, last_words = (1, f"{end.code}\n") if isinstance(end.code, str) else (end.code or 0, "")
    finally:
        sys.argv = argv
        for handler in root.handlers[:]:
            if handler not in handlers:
                handler.close()
        root.handlers[:], root.level = handlers, level
    return Ended(code, out.getvalue(), err.getvalue() + last_words)


def says(ended: Ended, *words: str) -> None:
    """One line on stderr with these words, and a code that scripts understand."""
    assert ended.code == 1
    assert "Traceback" not in ended.out + ended.err
    assert len(ended.err.strip().splitlines()) == 1, ended.err
    assert ended.err.startswith("error: ")
    for word in words:
        assert word in ended.err, ended.err
