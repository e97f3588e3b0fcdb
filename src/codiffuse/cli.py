"""The command line: Hydra composes, this module builds plain objects and runs them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from codiffuse.errors import InputError

logger = logging.getLogger(__name__)

# Settings that change how a run is carried out, not what it computes: they may differ when it is continued.
HOW_NOT_WHAT = ("device", "batch_size", "threads", "limit", "lpips", "animate", "run_id", "resume")
COUNTS = ("num_particles", "kernel_size")  # settings that are whole numbers of at least 1
COUNTS_OR_NULL = ("crop", "limit", "batch_size", "threads")


def config_dir() -> Path:
    """The folder of yaml files: the checkout's `conf/`, else the one in the installed package."""
    checkout = Path(__file__).parents[2] / "conf"
    return checkout if (checkout / "train.yaml").is_file() else Path(__file__).parent / "conf"


def train() -> None:
    """Entry point of `train.py`."""
    _hydra_main(_train, "train")


def infer() -> None:
    """Entry point of `infer.py`."""
    _hydra_main(_infer, "infer")


def main() -> None:
    """Entry point of `codiffuse`: `doctor`, `zoo`, `export`; `infer` and `train` take Hydra overrides."""
    import argparse

    parser = argparse.ArgumentParser(prog="codiffuse", description="Diffusion priors for blind inverse problems.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("doctor", help="versions, devices, memory, priors and data found")
    commands.add_parser("zoo", help="names and cards of the priors found")
    export = commands.add_parser("export", help="make a zoo folder from a training checkpoint")
    export.add_argument("checkpoint", type=Path, help="a .ckpt written by train.py")
    export.add_argument("name", help="name of the zoo entry, or a folder")
    export.add_argument("--card", type=Path, help="text to use as the model card")
    for name in ("infer", "train"):
        commands.add_parser(name, help=f"the same as {name}.py", add_help=False)
    arguments, overrides = parser.parse_known_args()
    if arguments.command in ("infer", "train"):
        sys.argv = [arguments.command, *overrides]
        return infer() if arguments.command == "infer" else train()
    if overrides:
        parser.error(f"unrecognized arguments: {' '.join(overrides)}")
    with _errors_in_one_line():
        _command(arguments)


def _command(arguments: Any) -> None:
    if arguments.command == "doctor":
        from codiffuse.doctor import report

        print(report())
    elif arguments.command == "zoo":
        from codiffuse.priors import zoo

        for name in zoo.zoo_names():
            print(f"{name:24s} {zoo.find(name)}")
    else:
        from codiffuse.training.export import export

        print(export(arguments.checkpoint, arguments.name, arguments.card))


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


def _infer(cfg: DictConfig) -> None:
    import torch
    from hydra.core.hydra_config import HydraConfig

    from codiffuse.inference.provenance import header, resolve_device
    from codiffuse.inference.restorer import Restorer
    from codiffuse.inference.runner import Runner
    from codiffuse.inference.scoring import Scorer, lpips
    from codiffuse.inference.writers import RunFolder

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    choices = HydraConfig.get().runtime.choices
    cfg.device = str(resolve_device(cfg.device))
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    _check_counts(plain)
    if plain["threads"]:
        torch.set_num_threads(plain["threads"])
    _keep_settings(plain, run_dir / "config.yaml")
    build = hydra.utils.instantiate
    operator, source = build(plain["operator"]), build(plain["data"])
    folder = RunFolder(run_dir)
    restorer = Restorer(
        method=build(plain["method"]),
        name=choices["method"],
        operator=operator,
        scorer=Scorer(operator, lpips if plain["lpips"] else None),
        device=torch.device(plain["device"]),
        seed=plain["seed"],
        num_frames=24 if plain["animate"] else 0,
    )
    rows = Runner(restorer, folder, plain["batch_size"] or (1 if plain["device"] == "cpu" else 8)).run(source)
    names = {"method": restorer.name, "experiment": plain["experiment_name"], "run_id": plain["run_id"]}
    summary = folder.finish(source.ids, header(plain["device"], **names) | {"settings": _settings(plain)})
    print(_closing_lines(summary, rows, run_dir))
    if summary["failed"]:
        said = "\n".join(f"error: {row['id']} {row['status']}" for row in rows if row["status"] != "ok")
        if HydraConfig.get().mode is not RunMode.MULTIRUN:
            sys.exit(said)
        print(said, file=sys.stderr)  # the other jobs of a sweep go on


def _check_counts(plain: dict[str, Any]) -> None:
    for name in COUNTS + COUNTS_OR_NULL:
        value = plain[name]
        if value is None and name in COUNTS_OR_NULL:
            continue
        if not isinstance(value, int) or value < 1:
            raise InputError(f"Expected a whole number of at least 1 for {name}, got {value!r}; set {name}=.")


def _keep_settings(plain: dict[str, Any], path: Path) -> None:
    """Save the settings; refuse a folder whose results were made with others."""
    from codiffuse.inference.files import write_bytes

    if path.exists() and (path.parent / "results.jsonl").exists():
        before, now = _what(OmegaConf.to_container(OmegaConf.load(path))), _what(plain)
        differing = sorted(key for key in now.keys() | before.keys() if now.get(key) != before.get(key))
        if differing:
            raise InputError(
                f"Expected the settings that {path.parent} was made with, got others for {', '.join(differing)}; "
                "choose another run_id, or remove the folder."
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, OmegaConf.to_yaml(plain).encode())


def _what(settings: Any) -> Any:
    """Settings without those that only say how; components repeat some of these."""
    if isinstance(settings, dict):
        return {key: _what(value) for key, value in settings.items() if key not in HOW_NOT_WHAT}
    return settings


def _settings(plain: dict[str, Any]) -> dict[str, Any]:
    """The plain values that a reader of the report wants to see."""
    return {key: value for key, value in plain.items() if not isinstance(value, dict) and value is not None}


def _closing_lines(summary: dict[str, Any], rows: list[dict[str, Any]], run_dir: Path) -> str:
    names = {
        "psnr_measurement_aligned": "PSNR before",
        "psnr_aligned": "PSNR after",
        "gain": "gain",
        "kernel_mnc": "kernel match (MNC)",
    }
    known = [(label, summary["metrics"].get(key)) for key, label in names.items()]
    numbers = [f"{label} {value['mean']:.2f}" for label, value in known if value and value["n"]]
    restored = f"{len(rows) - summary['failed']} of {len(rows)} images restored"
    return "\n".join(
        [
            restored + ("; " + ", ".join(numbers) if numbers else ""),
            f"pictures: {run_dir / 'images'}",
            f"report:   {run_dir / 'report.html'}",
        ]
    )


def register_resolvers() -> None:
    """What `${codiffuse.NAME:...}` in a yaml calls."""
    OmegaConf.register_new_resolver("codiffuse.slug", _slug, replace=True)
    OmegaConf.register_new_resolver("codiffuse.number", _number, replace=True)
    OmegaConf.register_new_resolver("codiffuse.without_key", lambda: not os.environ.get("WANDB_API_KEY"), replace=True)


def _hydra_main(task: Callable[[DictConfig], None], config_name: str) -> None:
    def guarded(cfg: DictConfig) -> None:
        with _errors_in_one_line():
            task(cfg)

    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them at length
    sys.argv = [_quoted(argument) for argument in sys.argv]
    with _errors_in_one_line():
        hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(guarded)()


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line for what the user can mend; a bug keeps its traceback."""
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)
    except MissingMandatoryValue as error:
        sys.exit(f"error: Expected a value for {error.full_key}, got none; add {error.full_key}=VALUE.")
    except InstantiationException as error:
        if not isinstance(error.__cause__, InputError | TypeError | ImportError | AttributeError):
            raise
        sys.exit(f"error: {_one_line(error.__cause__ if isinstance(error.__cause__, InputError) else error)}")
    except (InputError, HydraException, OmegaConfBaseException) as error:
        sys.exit(f"error: {_one_line(error)}")


def _one_line(error: BaseException) -> str:
    """The message without what only tells where Hydra looked."""
    message = str(error).removeprefix("InputError raised while resolving interpolation: ")
    for internal in ("Config search path:", "full_key:", "See https://hydra.cc", ", set env var HYDRA"):
        message = message.partition(internal)[0]
    return " ".join(message.split())


def _quoted(argument: str) -> str:
    """Quotes the path of a file that exists: to Hydra's grammar, brackets, commas and digits in it mean something."""
    name, _, value = argument.partition("=")
    if name != "input" or not os.path.exists(value):
        return argument
    # A quote is escaped by a backslash, and so are the backslashes in front of one; others stand for themselves.
    escaped = re.sub(r"\\+(?='|$)", lambda slashes: 2 * slashes[0], value).replace("'", r"\'")
    return f"input='{escaped}'"


def _slug(name: str, settings: str) -> str:
    """`name`, with a short hash of the settings that were asked for: the same command finds its folder again."""
    return f"{name}-{hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()}" if settings else name


def _number(value: Any) -> float | None:
    """A number, or a fraction as people write noise levels: `5/255`."""
    if value is None or isinstance(value, int | float):
        return value
    above, _, below = str(value).partition("/")
    try:
        return float(above) / float(below or 1)
    except (ValueError, ZeroDivisionError):
        raise InputError(f"Expected a number or a fraction such as 5/255, got {value!r}.") from None
