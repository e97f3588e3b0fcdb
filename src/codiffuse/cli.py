"""The command line: Hydra composes, this module builds plain objects and runs them."""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.singleton import Singleton
from hydra.core.utils import JobRuntime
from hydra.errors import HydraException, InstantiationException
from hydra.types import RunMode
from hydra.version import VersionBase
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.basecontainer import BaseContainer
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from codiffuse.errors import InputError

if TYPE_CHECKING:
    from codiffuse.data.measurements import MeasurementSource
    from codiffuse.data.sources import Source
    from codiffuse.inference.restorer import Restorer

logger = logging.getLogger(__name__)
_hydra_lock = threading.Lock()


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


def _infer(cfg: DictConfig) -> list[str]:
    from codiffuse.inference.provenance import header
    from codiffuse.inference.runner import Runner
    from codiffuse.inference.settings import keep_settings, prior_hashes
    from codiffuse.inference.summary import closing_lines
    from codiffuse.inference.writers import RunFolder

    run_dir = Path(HydraConfig.get().runtime.output_dir)
    plain = _plain(cfg)
    if plain["threads"]:
        import torch

        torch.set_num_threads(plain["threads"])
    keep_settings(run_dir, plain | {"weights": prior_hashes(plain)})
    source, restorer = measurements(plain), restorer_of(plain, HydraConfig.get().runtime.choices["method"])
    folder = RunFolder(run_dir)
    rows = Runner(
        restorer, folder, plain["batch_size"] or (1 if plain["device"] == "cpu" or plain.get("pipeline") else 8)
    ).run(source)
    names = {"method": restorer.name, "experiment": plain["experiment_name"], "run_id": plain["run_id"]}
    every = measurements(plain | {"data": plain["data"] | {"limit": None}}) if plain["data"].get("limit") else source
    summary = folder.finish(every.ids, header(plain["device"], **names) | {"settings": _settings(plain)})
    print(closing_lines(summary, run_dir))
    return [f"{row['id']} {row['status']}" for row in rows if row["status"] != "ok"]


def compose_infer(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> tuple[dict[str, Any], str]:
    """Composes `conf/infer.yaml` for a program that is not the command line, and leaves Hydra as it was found.

    Args:
        values: settings, and options of groups, by name.
        overrides: the same as on the command line, such as `method.coarse.num_refinements=2`; they win over `values`.

    Returns:
        All settings, resolved and checked, and the name of the chosen method.

    Raises:
        InputError: what the command line would end with.
    """
    given = [f"{name}={_literal(name, value)}" for name, value in values.items()]
    with input_errors(), _own_hydra():
        register_resolvers()
        with hydra.initialize_config_dir(str(config_dir()), job_name="infer", version_base="1.3"):
            cfg = hydra.compose("infer", [_for_hydra(each) for each in [*given, *overrides]], return_hydra_config=True)
        HydraConfig.instance().set_config(cfg)
        method = cfg.hydra.runtime.choices.get("method")
        with open_dict(cfg):
            del cfg["hydra"]
        return _plain(cfg), method


def measurements(plain: dict[str, Any], picture: Source | None = None) -> MeasurementSource:
    """The measurements of these settings, made of `picture` instead of what they name as `input`, if it is given."""
    data = dict(plain["data"])
    named = {"input": data.pop("input")} if "input" in data else {}
    # As an argument of the call, because Hydra copies what stands in a configuration, and looks for references in it.
    given = named if picture is None else {"input": picture}
    return hydra.utils.instantiate(data | {"_partial_": True})(**given)


def restorer_of(plain: dict[str, Any], method: str) -> Restorer:
    """The restorer of these settings; `method` is its name in the rows."""
    import torch

    from codiffuse.inference.restorer import Restorer
    from codiffuse.inference.scoring import Scorer, lpips
    from codiffuse.methods.base import is_blind

    operator, chosen = (hydra.utils.instantiate(plain[part]) for part in ("operator", "method"))
    if plain.get("pipeline") and is_blind(chosen):  # the others have no kernel to find
        # As an argument of the call, because Hydra copies what stands in a configuration.
        chosen = hydra.utils.instantiate(plain["pipeline"] | {"_partial_": True})(blind=chosen)
    return Restorer(
        method=chosen,
        name=method,
        operator=operator,
        scorer=Scorer(operator, lpips if plain["lpips"] else None),
        device=torch.device(plain["device"]),
        seed=plain["seed"],
        num_frames=24 if plain["animate"] else 0,
        peak=plain["noise"]["peak"],
    )


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """The settings of `infer.yaml`, resolved and checked."""
    from codiffuse.inference import checks
    from codiffuse.inference.provenance import resolve_device

    checks.check_groups(cfg)
    cfg.device = str(resolve_device(cfg.device))
    checks.check_settings({name: cfg[name] for name in checks.SETTINGS})
    plain: dict[str, Any] = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
    checks.check_components({"prior": plain["prior"]} | plain)  # first, because methods repeat it
    overrides = HydraConfig.get().overrides.task
    checks.check_samples(plain, {override.partition("=")[0].lstrip("+") for override in overrides})
    return plain


@contextmanager
def _own_hydra() -> Iterator[None]:
    """Hydra for ourselves: its singletons and the resolvers of a surrounding program come back afterwards."""
    ours = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
    with _hydra_lock:
        instances, resolvers = Singleton._instances, dict(BaseContainer._resolvers)
        found = {kind: instances.pop(kind, None) for kind in ours}
        try:
            yield
        finally:
            for kind, instance in found.items():
                instances.pop(kind, None)
                if instance is not None:
                    instances[kind] = instance
            BaseContainer._resolvers.clear()
            BaseContainer._resolvers.update(resolvers)


def _settings(plain: dict[str, Any]) -> dict[str, Any]:
    """The options of groups, and the plain values, that a reader of the report wants to see."""
    chosen = HydraConfig.get().runtime.choices
    groups = {name: chosen.get(name) or "null" for name in ("method", "pipeline", "operator", "noise", "data", "prior")}
    return groups | {key: value for key, value in plain.items() if not isinstance(value, dict) and value is not None}


def register_resolvers() -> None:
    """What `${codiffuse.NAME:...}` in a yaml calls."""
    OmegaConf.register_new_resolver("codiffuse.slug", _slug, replace=True)
    OmegaConf.register_new_resolver("codiffuse.number", _number, replace=True)
    OmegaConf.register_new_resolver("codiffuse.bytes", _bytes, replace=True)
    OmegaConf.register_new_resolver(
        "codiffuse.or", lambda value, auto: auto if value in ("auto", None) else value, replace=True
    )
    OmegaConf.register_new_resolver("codiffuse.without_key", lambda: not os.environ.get("WANDB_API_KEY"), replace=True)


def _hydra_main(task: Callable[[DictConfig], list[str] | None], config_name: str) -> None:
    """Hands the command line to Hydra; the task returns what failed, in lines. A sweep goes on with its other jobs."""
    failed: list[str] = []
    at_work = False

    def guarded(cfg: DictConfig) -> None:
        nonlocal at_work
        at_work = True
        try:
            with input_errors():
                lines = task(cfg) or []
        except InputError as error:
            lines = [_one_line(error)]
            if HydraConfig.get().mode is RunMode.MULTIRUN:
                logger.error("%s", lines[0])
        at_work = False
        job = f"job #{HydraConfig.get().job.num}: " if HydraConfig.get().mode is RunMode.MULTIRUN else ""
        failed.extend(f"error: {job}{line}" for line in lines)

    register_resolvers()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises its errors instead of printing them at length
    sys.argv = [_for_hydra(argument) for argument in sys.argv]
    with _errors_in_one_line():
        try:
            hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=config_name)(guarded)()
        except (OSError, ValueError) as error:
            refused = error if isinstance(error, OSError) else error.__cause__  # a ValueError where the log is to be
            if at_work or isinstance(error, HydraException) or not isinstance(refused, OSError):
                raise
            from codiffuse.inference.files import unwritable

            raise unwritable(refused) from error
    if failed:
        sys.exit("\n".join(failed))


@contextmanager
def _errors_in_one_line() -> Iterator[None]:
    """Ends the program with one line for what the user can mend; a bug keeps its traceback."""
    try:
        with input_errors():
            yield
    except KeyboardInterrupt:
        print("interrupted; the same command continues from here", file=sys.stderr)
        sys.exit(130)
    except InputError as error:
        sys.exit(f"error: {_one_line(error)}")


@contextmanager
def input_errors() -> Iterator[None]:
    """Makes an `InputError` of one line of every error that the user can mend; others are bugs and pass."""
    try:
        yield
    except MissingMandatoryValue as error:
        key = error.full_key
        raise InputError(f"Expected a value for {key}, got none; add {key}=VALUE.") from error
    except InstantiationException as error:
        if isinstance(error.__cause__, InputError):
            raise error.__cause__ from None
        if isinstance(error.__cause__, TypeError | ImportError | AttributeError):
            raise InputError(_one_line(error)) from error
        raise
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(_one_line(error)) from error
    except ValueError as error:
        if not str(error).startswith("Config group override must"):  # Hydra has no type for this one
            raise
        raise InputError(f"Expected names of options for all groups, got another value: {_one_line(error)}.") from error


def _one_line(error: BaseException) -> str:
    """The message without what only tells where Hydra looked."""
    message = str(error).removeprefix("InputError raised while resolving interpolation: ")
    for internal in ("Config search path:", "full_key:", "See https://hydra.cc", ", set env var HYDRA"):
        message = message.partition(internal)[0]
    return " ".join(message.split())


def _for_hydra(argument: str) -> str:
    """An argument of the command line as Hydra understands what is meant."""
    name, _, value = argument.partition("=")
    if re.fullmatch(r"input|prior\.\w+\.name", name) and os.path.exists(value):
        return f"{name}={_text(value)}"  # brackets, commas and digits in a path mean something to Hydra's grammar
    if value == "null" and name.isidentifier() and (config_dir() / name).is_dir():
        return f"{name}=[]"  # no option of a group
    if (config_dir() / name.lstrip("+").partition("@")[0]).is_dir() and _is_number_or_switch(value):
        return f"{name}={_text(value)}"  # a name as any other: Hydra says which there are
    return argument


def _is_number_or_switch(value: str) -> bool:
    """Whether Hydra would take the value of a setting for something else than a text."""
    try:
        return isinstance(OverridesParser.create().parse_override(f"value={value}").value(), bool | int | float)
    except HydraException:
        return False


def _text(value: str) -> str:
    """A text in Hydra's grammar."""
    # A quote is escaped by a backslash, and so are the backslashes in front of one; others stand for themselves.
    # The same holds for what would be a reference to another setting.
    escaped = re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    escaped = re.sub(r"\\+(?='|$)", lambda slashes: 2 * slashes[0], escaped).replace("'", r"\'")
    return f"'{escaped}'"


def _literal(name: str, value: Any) -> str:
    """A Python value in Hydra's grammar."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # one number of NumPy or torch
        value = value.item()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Real):
        return repr(int(value) if isinstance(value, Integral) else float(value))
    if isinstance(value, str | Path):
        return _text(str(value))
    if isinstance(value, list | tuple):
        return f"[{','.join(_literal(name, part) for part in value)}]"
    got = type(value).__name__ + (f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else "")
    raise InputError(f"Expected a number, a text, a list or None for {name}, got {got}; give one of these.")


def _slug(name: str, settings: str) -> str:
    """`name`, with a short hash of the settings that were asked for: the same command finds its folder again."""
    return f"{name}-{hashlib.blake2b(settings.encode(), digest_size=3).hexdigest()}" if settings else name


def _bytes(gibibytes: float | None) -> int | None:
    return None if gibibytes is None else round(gibibytes * 2**30)


def _number(value: Any) -> float | None:
    from codiffuse.inference.checks import number

    return number(value)
