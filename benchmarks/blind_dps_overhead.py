"""What a step of BlindDPS costs beyond its networks.

    python -m benchmarks.blind_dps_overhead [--sides 64 128 256] [--repeats 5] [--threads 1]
    python -m benchmarks.blind_dps_overhead --set operator=turbulence kernel_size=17

The networks are those of all unknowns, each with a forward pass and a vector-Jacobian product. Both are timed
alternately in this process, and the best of the repeats counts. Exits with 1 when the bound is missed.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace

import torch

from benchmarks.sampling import best_of
from codiffuse import cli
from codiffuse.errors import InputError
from codiffuse.methods.base import Measurement
from codiffuse.methods.blind_dps import BlindDPS
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.noise import GaussianNoise
from codiffuse.randomness import GeneratorNoise

MAX_OVERHEAD, BOUND_SIDE = 0.10, 256  # of a step over the bare networks, from this side on
STEPS = 3


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", type=int, nargs="+", default=[64, 128, 256])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--set", nargs="*", default=[], help="other settings, as on the command line of infer.py")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    chosen = ["experiment=bench/bsd100_motion", "method=blind_dps", f"method.process.num_steps={STEPS}"]
    try:
        plain, name = cli.compose_infer({}, [*chosen, *arguments.set])
        with cli.input_errors():
            restorer = cli.restorer_of(plain, name)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {restorer.device}, {name}")
    method = replace(restorer.method, max_retries=0)  # noise is not explained by anything
    found = {
        side: step_overhead(method, restorer.operator, side, restorer.device, arguments.repeats)
        for side in arguments.sides
    }
    missed = any(overhead > MAX_OVERHEAD for side, overhead in found.items() if side >= BOUND_SIDE)
    print(f"the bound of {MAX_OVERHEAD:.0%} from {BOUND_SIDE} px on {'is missed' if missed else 'holds'}")
    return int(missed)


def step_overhead(method: BlindDPS, operator: BlurOperator, side: int, device: torch.device, repeats: int) -> float:
    """Print and return the share of time that a step spends outside its networks' forward passes and gradients.

    Args:
        method: of one particle, with `STEPS` steps.
        operator: of the measurement.
        side: of the measurement, px.
        device: where both run.
        repeats: of which the best counts.
    """
    y = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device)
    measurement = Measurement(y, GaussianNoise(5 / 255), operator)
    canvas = operator.image_shape((side, side), kernel_size=method.parameters["kernel"].shape((side, side))[1:])
    alpha_bar = torch.full((1,), method.process.schedule().steps()[1].alpha_bar, dtype=torch.float64, device=device)
    networks = []
    for variable in (method.image, *method.parameters.values()):
        if variable.prior is not None:
            x = torch.randn(1, *variable.shape(canvas), device=device, requires_grad=True)
            networks.append((variable.prior.network, x, variable.prior.time(alpha_bar).float()))

    def bare() -> None:
        for network, x, time in networks:
            output = network(x, time)
            torch.autograd.grad(output, x, output)

    def whole() -> None:
        method(measurement, noise=GeneratorNoise([0]))

    bare_s, whole_s = best_of(repeats, device, bare, whole)
    whole_s /= method.num_steps
    overhead = whole_s / bare_s - 1
    print(f"{side:4d} px: {len(networks)} networks {bare_s:.4f} s, BlindDPS {whole_s:.4f} s a step, {overhead:+.1%}")
    return overhead


if __name__ == "__main__":
    sys.exit(main())
