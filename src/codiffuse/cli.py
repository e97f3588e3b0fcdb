"""The command line: Hydra composes, this module builds plain objects and runs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import hydra
from omegaconf import DictConfig, OmegaConf

from codiffuse.errors import InputError


def config_dir() -> Path:
    """The folder of yaml files: the checkout's `conf/`, else the one in the installed package."""
    checkout = Path(__file__).parents[2] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else Path(__file__).parent / "conf"


def train() -> None:
    """Entry point of `train.py`."""
    _hydra_main(_train, "train")


def _train(cfg: DictConfig) -> None:
    from hydra.core.hydra_config import HydraConfig

    from codiffuse.training.run import fit

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    OmegaConf.save(plain, run_dir / "config.yaml")
    build = hydra.utils.instantiate
    fit(
        build(plain["model"]),
        build(plain["data"]),
        run_dir,
        trainer=plain["trainer"],
        callbacks=[build(callback) for callback in (plain["callbacks"] or {}).values()],
        extra_logger=build(plain["logger"]) if plain["logger"] else None,
        ema_decay=plain["ema_decay"],
        checkpoint_minutes=plain["checkpoint_minutes"],
        resume=plain["resume"],
        threads=plain["threads"],
    )


def _hydra_main(task, config_name: str) -> None:
    def guarded(cfg: DictConfig) -> None:
        try:
            task(cfg)
        except InputError as error:
            sys.exit(f"error: {error}")

    hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(guarded)()
