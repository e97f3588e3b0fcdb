"""What Fast EM costs beyond its network, how fast the M-step is, and the memory of a 256 px run.

    python -m benchmarks.sampling [--repeats 5] [--device cpu] [--threads 1]

Every ratio compares two things that ran alternately in this process; the best of the repeats counts, because whatever
else the machine does only ever adds time. Exits with 1 when a bound is missed.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

from codiffuse.estimation.hqs import HQS
from codiffuse.estimation.regularizers import PnP
from codiffuse.methods.base import Measurement
from codiffuse.methods.fast_em import FastEM
from codiffuse.methods.steps import ReverseProcess, delta_kernel
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.priors import zoo
from codiffuse.randomness import GeneratorNoise
from codiffuse.spaces import shift_and_divide

CASES = ((64, 1), (64, 4), (128, 1), (128, 4), (256, 1))  # side in px, particles
MAX_OVERHEAD = 0.10  # of a step over the bare network, at 256 px and one particle
MAX_PEAK_GIB = 2.0  # of a whole process that restores 256 px, as the README states
STEPS = 3
KERNEL = 33


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--peak", action="store_true", help=argparse.SUPPRESS)  # the child process of `peak_gib`
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    if arguments.peak:
        run_once(device)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20)
        return 0
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {arguments.device}")
    overhead = {case: step_overhead(*case, device, arguments.repeats) for case in CASES}
    m_step_speed(device, arguments.repeats)
    peak = peak_gib(arguments)
    print(f"peak memory of a 256 px run, whole process: {peak:.2f} GiB (bound {MAX_PEAK_GIB})")
    missed = overhead[256, 1] > MAX_OVERHEAD or peak > MAX_PEAK_GIB
    print("a bound is missed" if missed else "all bounds hold")
    return int(missed)


def step_overhead(side: int, n: int, device: torch.device, repeats: int) -> float:
    """Print and return the share of time that a step spends outside the network's forward and vjp."""
    method, measurement = _method(device, n), _measurement(device, side)
    step = method.process.schedule().steps()[1]
    x = torch.randn(n, 3, side, side, device=device, requires_grad=True)
    time_of_step = method.prior.time(torch.full((n,), step.alpha_bar, dtype=torch.float64, device=device)).float()

    def bare() -> None:
        output = method.prior.network(x, time_of_step)
        torch.autograd.grad(output, x, output)

    def whole() -> None:
        method(measurement, noise=GeneratorNoise([0]))

    bare_s, whole_s = best_of(repeats, device, bare, whole)
    whole_s /= STEPS
    overhead = whole_s / bare_s - 1
    print(f"{side:4d} px, n = {n}: network {bare_s:.4f} s, Fast EM {whole_s:.4f} s a step, {overhead:+.1%}")
    return overhead


def m_step_speed(device: torch.device, repeats: int) -> None:
    """Print the M-step beside a literal transcription of Eqs. 24 and 25."""
    denoiser = zoo.load("kernel_denoiser", "kernel_denoiser", device)
    for side, n in ((64, 1), (256, 1), (256, 4)):
        y = _measurement(device, side).y
        x = torch.rand(1, n, 3, side, side, device=device)
        sigma, start = torch.tensor([5 / 255], device=device), delta_kernel(y, (KERNEL, KERNEL))
        m_step = HQS(PnP(denoiser), recentring="none")

        def ours(y=y, x=x, sigma=sigma, start=start, m_step=m_step) -> Tensor:
            return m_step(BlurOperator().normal_equations(y, x, kernel_size=(KERNEL, KERNEL)), sigma, start)

        def literal(y=y, x=x, sigma=sigma, start=start, m_step=m_step) -> Tensor:
            return literal_m_step(y, x[0], sigma, start, m_step)

        difference = float((ours() - literal()).abs().max())
        ours_s, literal_s = best_of(repeats, device, ours, literal)
        print(
            f"M-step {side:4d} px, n = {n}: {ours_s * 1e3:.1f} ms, literal {literal_s * 1e3:.1f} ms, "
            f"{literal_s / ours_s:.1f} times faster, differs by {difference:.0e}"
        )


def literal_m_step(y: Tensor, x: Tensor, sigma: Tensor, kernel: Tensor, m_step: HQS) -> Tensor:
    """Eq. 24 as printed: complex FFTs of everything in each iteration, summed over particles and channels."""
    n, _, height, width = x.shape
    weight = n * m_step.beta * sigma**2
    for _ in range(m_step.iterations):
        padded = torch.nn.functional.pad(kernel, (0, width - KERNEL, 0, height - KERNEL))
        padded = padded.roll((-(KERNEL // 2), -(KERNEL // 2)), (-2, -1))
        above = (torch.fft.fft2(y) * torch.fft.fft2(x).conj()).sum((0, 1)) + weight * torch.fft.fft2(padded)
        below = (torch.fft.fft2(x) * torch.fft.fft2(x).conj()).sum((0, 1)) + weight
        z = torch.fft.ifft2(above / below).real.roll((KERNEL // 2, KERNEL // 2), (-2, -1))[..., :KERNEL, :KERNEL]
        kernel = shift_and_divide(m_step.regularizer(z, m_step.weight, m_step.beta))
    return kernel


def peak_gib(arguments: argparse.Namespace) -> float:
    """Peak resident memory of a fresh process that restores one 256 px picture."""
    command = [sys.executable, "-m", "benchmarks.sampling", "--peak", "--device", arguments.device]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()[-1])


def run_once(device: torch.device) -> None:
    """One short Fast EM run at 256 px: every step holds the same memory."""
    _method(device, 1)(_measurement(device, 256), noise=GeneratorNoise([0]))


def best_of(repeats: int, device: torch.device, *tasks: Callable[[], object]) -> list[float]:
    """Least seconds of each task, run alternately after a warm-up."""
    times: list[list[float]] = [[] for _ in tasks]
    for repeat in range(repeats + 1):
        for task, seconds in zip(tasks, times, strict=True):
            started = time.perf_counter()
            task()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            if repeat:
                seconds.append(time.perf_counter() - started)
    return [min(seconds) for seconds in times]


def _method(device: torch.device, n: int) -> FastEM:
    denoiser = zoo.load("kernel_denoiser", "kernel_denoiser", device)
    prior = zoo.load("natural_image", "prior", device)
    return FastEM(
        prior, HQS(PnP(denoiser)), process=ReverseProcess(num_steps=STEPS), num_particles=n, kernel_size=KERNEL
    )


def _measurement(device: torch.device, side: int) -> Measurement:
    y = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    return Measurement(y, GaussianNoise(5 / 255), BlurOperator())


if __name__ == "__main__":
    sys.exit(main())
