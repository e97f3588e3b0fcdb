"""Diffusion EM: full posterior samples between M-steps (Laroche, Almansa, Coupete; WACV 2024, supplement, Alg. A.1)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from codiffuse.estimation.hqs import HQS
from codiffuse.methods.base import Callback, Measurement, Method, Restoration
from codiffuse.methods.steps import check_counts, check_kernel_fits, delta_kernel, part_of_run
from codiffuse.operators.blur import BlurOperator
from codiffuse.randomness import NoiseSource


@dataclass(frozen=True)
class DiffusionEM:
    """L times: n posterior samples with the current kernel, then one M-step on them.

    Attributes:
        e_step: a non-blind method, the sampler of Algorithm 1; its `num_particles` is n.
        m_step: estimates the kernel from y and the samples.
        num_iterations: L.
        kernel_size: side of the unknown kernel, px.
    """

    e_step: Method
    m_step: HQS
    num_iterations: int = 10
    kernel_size: int = 33
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_counts(num_iterations=self.num_iterations, kernel_size=self.kernel_size)

    @property
    def num_steps(self) -> int:
        """Steps of a whole run."""
        return self.num_iterations * self.e_step.num_steps

    @property
    def work(self) -> float:
        """Time of a whole run, in steps of one particle."""
        return self.e_step.num_particles * self.num_steps

    def with_kernel_size(self, size: int) -> DiffusionEM:
        """The same method for another kernel size."""
        return replace(self, kernel_size=size)

    def supports(self, operator: BlurOperator) -> str | None:
        """`None`, or why not."""
        return self.e_step.supports(operator)

    @torch.no_grad()
    def __call__(
        self,
        measurement: Measurement,
        *,
        noise: NoiseSource,
        init: dict[str, Tensor] | None = None,
        callback: Callback | None = None,
    ) -> Restoration:
        """Restore `measurement.y` and estimate its kernel; arguments as for the other methods."""
        y, size = measurement.y, (self.kernel_size, self.kernel_size)
        check_kernel_fits(size, y)
        kernel = (init or {}).get("kernel")
        kernel = delta_kernel(y, size) if kernel is None else kernel.to(y)
        nfe = 0
        for iteration in range(self.num_iterations):
            # Alg. A.1, E-step: x^i ~ p(x0 | y, K_l) with Algorithm 1, fresh noise.
            known = replace(measurement, known={"kernel": kernel})
            part = part_of_run(callback, iteration * self.e_step.num_steps, self.num_steps)
            drawn = self.e_step(known, noise=noise, callback=part)
            nfe += drawn.nfe
            # Alg. A.1, M-step: K_{l+1} from y and the samples, warm-started from K_l.
            samples = drawn.raw["x"].clamp(0, 1)
            equations = measurement.operator.normal_equations(y, samples, kernel_size=size, mask=measurement.mask)
            kernel = self.m_step(equations, measurement.sigma, kernel)
        return replace(drawn, params={"kernel": kernel}, raw={**drawn.raw, "kernel": kernel}, nfe=nfe)
