"""One training run: its trainer, its checkpoints, and how it resumes."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger, Logger

from codiffuse.errors import InputError
from codiffuse.training.ema import EMA

logger = logging.getLogger(__name__)


def fit(
    module: pl.LightningModule,
    data: pl.LightningDataModule,
    run_dir: Path,
    *,
    trainer: Mapping[str, Any],
    callbacks: Sequence[pl.Callback] = (),
    extra_logger: Logger | None = None,
    ema_decay: float = 0.999,
    checkpoint_minutes: float = 5.0,
    resume: str = "auto",
    threads: int | None = None,
) -> Path:
    """Train, writing `checkpoints/`, `metrics.csv` and `samples/` below `run_dir`.

    Args:
        module: what to train.
        data: what to train on.
        run_dir: a folder that stays the same when the run is started again.
        trainer: arguments of Lightning's `Trainer`.
        callbacks: beside averaging, checkpoints and the progress bar.
        extra_logger: beside the CSV log, which is always written.
        ema_decay: of the averaged weights, which validation and checkpoints use.
        checkpoint_minutes: time between checkpoints; one is also written at the end and on an exception.
        resume: `auto` continues from the newest checkpoint of `run_dir` if there is one, `must` insists on one, `never`
            refuses a folder that has one.
        threads: of torch on the CPU; `None` leaves torch's choice.

    Returns:
        The last checkpoint.
    """
    if trainer.get("accelerator") in ("gpu", "cuda") and not torch.cuda.is_available():
        raise InputError("Expected a GPU for trainer=gpu, found none; use trainer=cpu or trainer=auto.")
    checkpoint = _checkpoint_to_resume(run_dir, resume)
    if threads:
        torch.set_num_threads(threads)
    torch.set_float32_matmul_precision("high")
    _keep_metrics(run_dir)
    bar = [TQDMProgressBar(refresh_rate=20)] if trainer.get("enable_progress_bar", True) else []
    engine = pl.Trainer(
        default_root_dir=run_dir,
        logger=[CSVLogger(run_dir, name=None, version=""), *([extra_logger] if extra_logger else [])],
        callbacks=[EMA(ema_decay), _saver(run_dir / "checkpoints", checkpoint_minutes), *bar, *callbacks],
        max_epochs=-1,
        check_val_every_n_epoch=None,
        use_distributed_sampler=False,
        inference_mode=False,
        num_sanity_val_steps=0,
        **{**trainer, "precision": _precision(trainer.get("precision", "auto"), trainer.get("accelerator", "auto"))},
    )
    started = time.monotonic()
    try:
        engine.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
    finally:
        _note_part(run_dir, engine, time.monotonic() - started)
    last = run_dir / "checkpoints" / "last.ckpt"
    engine.save_checkpoint(last)
    return last


def _checkpoint_to_resume(run_dir: Path, resume: str) -> Path | None:
    checkpoint = newest_checkpoint(run_dir / "checkpoints")
    if resume not in ("auto", "must", "never"):
        raise InputError(f"Expected resume=auto, must or never, got {resume!r}.")
    if resume == "must" and checkpoint is None:
        raise InputError(f"Expected a checkpoint in {run_dir / 'checkpoints'}, found none; use resume=auto to start.")
    if resume == "never" and checkpoint is not None:
        raise InputError(f"Expected an empty run folder, found {checkpoint}; use resume=auto or another run_id.")
    if checkpoint:
        logger.info("Resuming from %s.", checkpoint)
    return checkpoint


def _precision(asked: str, accelerator: str) -> str:
    """`auto` is bf16 where the device computes in it, else float32."""
    if asked != "auto":
        return asked
    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32-true"
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


def _note_part(run_dir: Path, engine: pl.Trainer, seconds: float) -> None:
    """Add a line to `parts.jsonl`: what the model card says of time and device."""
    if not engine.is_global_zero:
        return
    device = torch.cuda.get_device_name() if engine.strategy.root_device.type == "cuda" else "CPU"
    part = {
        "until_step": engine.global_step,
        "seconds": round(seconds),
        "device": f"{device}, {torch.get_num_threads()} threads" if device == "CPU" else device,
        "precision": str(engine.precision),
    }
    with (run_dir / "parts.jsonl").open("a") as file:
        file.write(json.dumps(part) + "\n")


def newest_checkpoint(folder: Path) -> Path | None:
    """The checkpoint of the highest global step, unreadable ones passed over."""
    found: list[tuple[int, float, Path]] = []
    for path in folder.glob("*.ckpt"):
        try:
            step = torch.load(path, map_location="cpu", weights_only=True, mmap=True)["global_step"]
        except (OSError, RuntimeError, KeyError, TypeError, EOFError, UnpicklingError) as error:
            logger.warning("Passing over the unreadable checkpoint %s (%s).", path, error)
            continue
        found.append((step, path.stat().st_mtime, path))
    return max(found)[2] if found else None


def _keep_metrics(run_dir: Path) -> None:
    """Move the log of an earlier part of the run aside: Lightning's CSV logger would delete it."""
    log = run_dir / "metrics.csv"
    if log.exists():
        log.rename(run_dir / f"metrics.part{len(list(run_dir.glob('metrics.part*.csv'))) + 1}.csv")


def _saver(folder: Path, minutes: float) -> ModelCheckpoint:
    return ModelCheckpoint(
        dirpath=folder,
        filename="{step}",
        train_time_interval=timedelta(minutes=minutes),
        save_top_k=1,
        save_last=True,
        save_on_exception=True,
        enable_version_counter=False,
    )
