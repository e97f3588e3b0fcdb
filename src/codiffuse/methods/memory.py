"""How much memory a particle takes, and how many fit."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from torch import Tensor

from codiffuse.priors.prior import Prior

logger = logging.getLogger(__name__)

PROBE_SIDE = 64
SHARE = 0.6  # of the free memory that activations may take; the rest is for workspaces and everything else


def bytes_per_pixel(prior: Prior) -> float:
    """Memory that one forward pass keeps for its backward pass, per pixel of a particle: measured, not modelled.

    A frozen network's saved tensors grow with the area, so a small probe tells the cost of any size.
    """
    device = next(prior.parameters()).device
    kept: dict[int, int] = {}

    def count(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    x = torch.zeros(1, prior.channels, PROBE_SIDE, PROBE_SIDE, device=device, requires_grad=True)
    weights = {p.data_ptr() for p in prior.parameters()}
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
        prior.denoise(x, torch.full((1,), 0.5, dtype=torch.float64, device=device))
    return sum(size for pointer, size in kept.items() if pointer not in weights) / PROBE_SIDE**2


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
