"""How much memory and time a run takes, and what fits."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from codiffuse.priors.prior import Prior

logger = logging.getLogger(__name__)

PROBE_SIDES = (64, 96)  # px
TIMED_SIDE = 128  # large enough for the time of a pixel to be that of a tile, within a tenth on a CPU
OVERHEAD = 1.25  # of a step over its network: conjugate gradients of the guidance, or the M-step
SHARE = 0.5  # of the memory that activations may take: at its peak, the backward pass holds up to twice as much

# Of each prior, by device and precision: a plan asks many times, and each probe is two passes of the network.
_measured: WeakKeyDictionary[Prior, dict[tuple[torch.device, bool], float]] = WeakKeyDictionary()


def bytes_per_pixel(prior: Prior) -> float:
    """Memory that one forward pass keeps for its backward pass, per pixel of a particle: measured, not modelled.

    A frozen network's saved tensors grow with the area, so two small probes tell the cost of any size; what does not
    grow, such as the copies of its weights in bfloat16, is the same in both.
    """
    found, kind = _measured.setdefault(prior, {}), (next(prior.parameters()).device, prior.autocast)
    if kind not in found:
        small, large = PROBE_SIDES
        grown = (_kept_bytes(prior, large) - _kept_bytes(prior, small)) / (large**2 - small**2)
        found[kind] = max(grown, 4 * prior.channels)  # a linear network keeps nothing, but its input is there
    return found[kind]


def _kept_bytes(prior: Prior, side: int) -> int:
    device = next(prior.parameters()).device
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # as it is, an output would keep the graph that it belongs to alive for ever

    x = torch.zeros(1, prior.channels, side, side, device=device, requires_grad=True)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        prior.denoise(x, torch.full((1,), 0.5, dtype=torch.float64, device=device))
    return sum(kept.values())


def peak_bytes(prior: Prior, shape: tuple[int, ...]) -> int:
    """Memory that guidance of particles `(B, n, C, H, W)` takes at its peak, all in one network call."""
    return round(bytes_per_pixel(prior) * shape[0] * shape[1] * shape[-2] * shape[-1] / SHARE)


def free_bytes(device: torch.device) -> int:
    """Memory left on a device."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        available = next(line for line in meminfo.read_text().splitlines() if line.startswith("MemAvailable"))
        return int(available.split()[1]) * 1024
    return 4 * 2**30  # no portable way to ask: assume little


def particles_that_fit(prior: Prior, shape: tuple[int, ...]) -> int | None:
    """Particles a network call for `(B, n, C, H, W)`, or `None` when all fit at once."""
    wanted = shape[0] * shape[1]
    if wanted == 1:
        return None
    each = bytes_per_pixel(prior) * shape[-2] * shape[-1]
    fit = max(int(SHARE * free_bytes(next(prior.parameters()).device) / each), 1)
    if fit >= wanted:
        return None
    logger.info("Memory for %d of %d particles at a time (%.0f MiB each).", fit, wanted, each / 2**20)
    return fit


@dataclass(frozen=True)
class Estimate:
    """What a run is going to take; `a + b` is for one run after the other.

    Attributes:
        seconds: its time.
        bytes: its memory at the peak, beyond what the process and the measurement take already.
    """

    seconds: float
    bytes: int

    def __add__(self, later: Estimate) -> Estimate:
        return Estimate(self.seconds + later.seconds, max(self.bytes, later.bytes))

    def __str__(self) -> str:
        if self.seconds < 100:
            length = f"{self.seconds:.0f} s"
        else:
            length = f"{self.seconds / 60:.0f} min" if self.seconds < 6000 else f"{self.seconds / 3600:.1f} h"
        return f"about {length} and {self.bytes / 2**30:.1f} GiB"


def estimate(prior: Prior, shape: tuple[int, ...], calls: float) -> Estimate:
    """What a run takes, from the time of the network on a small picture.

    Args:
        prior: of the image.
        shape: of the particles, `(B, n, C, H, W)`.
        calls: forward passes, each with one backward pass.
    """
    device = next(prior.parameters()).device
    side = min(TIMED_SIDE, *shape[-2:])
    x = torch.zeros(1, prior.channels, side, side, device=device, requires_grad=True)
    alpha_bar = torch.full((1,), 0.5, dtype=torch.float64, device=device)

    def call() -> None:
        with torch.enable_grad():
            x0 = prior.denoise(x, alpha_bar).x0
        torch.autograd.grad(x0, x, x0)

    areas = shape[0] * shape[1] * shape[-2] * shape[-1] / side**2
    return Estimate(calls * areas * OVERHEAD * _seconds(call, device), peak_bytes(prior, shape))


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    """The least of a few tries: the first ones load code, and whatever else the machine does only adds time."""
    tries = []
    for _ in range(3):
        started = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        tries.append(time.perf_counter() - started)
    return min(tries)
