"""Random motion-blur kernels: the random-path model and a camera-shake model.

Paths are complex arrays, `x + 1j * y` in kernel pixels about the middle of the support, x to the right and y downwards.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from codiffuse.simulate.support import Size, as_kernel, centre_kernel, check_positive, sides

Rng = np.random.Generator | np.random.RandomState

EPSILON = 0.1  # keeps steps and angles of the random-path model random at the ends of the intensity range
SHORTEST_PATH = 1e-3  # of the diagonal: a tenth of a pixel at most, and steps below it are still drawn quickly
LANCZOS_LOBES = 3
STEPS_PER_PIXEL = 16  # of the side: the points of the longest tangled shake stay closer than a pixel
STEPS_PER_UNIT_TIME = 10  # keeps the simulated motion stable


def random_path(size: Size, intensity: float, rng: Rng) -> np.ndarray:
    """Draw a polyline of the random-path model (L. Borodenko's `motionblur`, 2020).

    The order of the draws is the original's, so that a seeded `RandomState` gives the same path.

    Args:
        size: side or `(h, w)` of the kernel in pixels.
        intensity: in (0, 1]; near 0 almost a straight line of few steps, near 1 an erratic walk of many.
        rng: source of randomness.

    Returns:
        The vertices, complex128 `(n,)`; their mean is 0. Long paths leave the support.

    Raises:
        InputError: a side below 3, or an intensity outside (0, 1].
    """
    check_positive("intensity", intensity, highest=1.0)
    diagonal = float(np.hypot(*sides(size)))
    steps = _step_lengths(diagonal, intensity, rng)
    path = np.cumsum(steps * np.exp(1j * _directions(len(steps), intensity, rng)))
    return (path - path.mean()) * np.exp(1j * rng.uniform(0, np.pi))


def _step_lengths(diagonal: float, intensity: float, rng: Rng) -> np.ndarray:
    path_length = 0.75 * diagonal * (rng.uniform() + rng.uniform(0, intensity**2))
    path_length = max(path_length, SHORTEST_PATH * diagonal)
    longest_step = (1 - intensity + EPSILON) * diagonal
    steps, total = [], 0.0
    while total < path_length:
        step = rng.beta(1, 30) * longest_step
        if step < path_length:
            steps.append(step)
            total += step
    return np.array(steps)


def _directions(count: int, intensity: float, rng: Rng) -> np.ndarray:
    """Angles (rad) to the main direction; from one step to the next the path seldom changes sides."""
    max_angle = rng.uniform(0, intensity * np.pi)
    change_side = rng.beta(2, 20)
    angles = [rng.uniform(-max_angle, max_angle)]
    side = np.sign(angles[0])
    for _ in range(count - 1):
        angle = rng.triangular(0, intensity * max_angle, max_angle + EPSILON)
        if rng.uniform() < change_side:
            side = -side
        angles.append(side * angle)
    return np.array(angles)


def random_path_kernel(size: Size, intensity: float, rng: Rng) -> Tensor:
    """Draw a kernel of the random-path model: a polyline of constant brightness, blurred and reduced by a half.

    The original works with 8 bits and draws nothing below 54 px, where its line is 0 px wide; here the raster has float
    precision and the line is at least 1 px wide at every size. The middle of the path is the middle of the support: the
    centre pixel when a side is odd, half a pixel before it when the side is even.

    Args:
        size: side or `(h, w)` in pixels.
        intensity: in (0, 1], see `random_path`.
        rng: source of randomness.

    Returns:
        Kernel `(1, h, w)`.

    Raises:
        InputError: a side below 3, or an intensity outside (0, 1].
    """
    h, w = sides(size)
    diagonal = np.hypot(2 * h, 2 * w)
    blur_std = max(1, int(diagonal / 100))
    line = _draw_line(random_path(size, intensity, rng), h, w, width=max(1, int(diagonal / 150)))
    raster = _blur_and_halve(h, blur_std) @ line @ _blur_and_halve(w, blur_std).T
    return as_kernel(raster.clip(min=0))


def _draw_line(path: np.ndarray, h: int, w: int, width: int) -> np.ndarray:
    """The path as a line of ones `width` px wide on a canvas `(2h, 2w)` of twice the resolution."""
    from PIL import Image, ImageDraw

    canvas = Image.new("L", (2 * w, 2 * h))
    vertices = 2 * path + (w + 1j * h)
    ImageDraw.Draw(canvas).line(list(zip(vertices.real, vertices.imag, strict=True)), fill=1, width=width)
    return np.asarray(canvas, dtype=np.float64)


@lru_cache(maxsize=256)
def _blur_and_halve(n: int, std: float) -> np.ndarray:
    """Matrix `(n, 2n)`: Gaussian blur of `std` canvas pixels along one axis, then Lanczos reduction from 2n to n."""
    canvas = np.arange(2 * n)
    gaussian = np.exp(-0.5 * ((canvas[:, None] - canvas) / std) ** 2)
    distance = (canvas + 0.5) / 2 - (np.arange(n)[:, None] + 0.5)
    lanczos = np.sinc(distance) * np.sinc(distance / LANCZOS_LOBES) * (np.abs(distance) < LANCZOS_LOBES)
    return (lanczos / lanczos.sum(1, keepdims=True)) @ (gaussian / gaussian.sum(1, keepdims=True))


def shake_path(
    exposure: float,
    anxiety: float,
    num_steps: int,
    rng: np.random.Generator,
    *,
    pull: float = 0.5,
    jerk_rate: float = 0.1,
) -> np.ndarray:
    """Simulate the path of the image on the sensor while a hand holds the camera.

    A particle with inertia, after Boracchi and Foi (IEEE TIP 2012), in units of the hand's inertia time (some 50 ms):

        dx = v dt,    dv = (d - v - pull * x) dt + anxiety * sqrt(2) dW + jerks

    The hand drifts with the constant velocity d (|d| = 1), trembles (white noise that the inertia low-passes: the
    physiological picture of Gavant et al., 2011), is pulled back to where it started, and at random moments jerks
    back: v turns by pi up to half a radian.

    Args:
        exposure: exposure time; below 1 the path is a smooth arc, at 10 and more it is tangled.
        anxiety: strength of the tremor relative to the drift.
        num_steps: number of points, equally spaced in time.
        rng: source of randomness.
        pull: stiffness of the pull back to the start.
        jerk_rate: mean number of jerks per unit of time.

    Returns:
        Positions at equal time steps, complex128 `(num_steps,)`, of arbitrary scale and origin.
    """
    dt = exposure / num_steps
    tremor = anxiety * np.sqrt(dt) * (rng.standard_normal(num_steps) + 1j * rng.standard_normal(num_steps))
    jerk = np.where(rng.random(num_steps) < jerk_rate * dt, -np.exp(1j * rng.uniform(-0.5, 0.5, num_steps)), 1)
    drift = complex(np.exp(1j * rng.uniform(0, 2 * np.pi)))
    position, velocity, path = 0j, drift, []
    for kick, turn in zip(tremor.tolist(), jerk.tolist(), strict=True):
        velocity = turn * velocity + (drift - velocity - pull * position) * dt + kick
        position += velocity * dt
        path.append(position)
    return np.array(path)


def camera_shake_kernel(
    size: Size,
    rng: np.random.Generator,
    *,
    exposure: float = 4.0,
    anxiety: float = 1.0,
    reach: float = 1.0,
) -> Tensor:
    """Draw a camera-shake kernel: the time that `shake_path` spends in each pixel.

    Its centre of mass is the centre pixel (up to float rounding) at odd and even sizes.

    Args:
        size: side or `(h, w)` in pixels.
        rng: source of randomness.
        exposure: see `shake_path`.
        anxiety: see `shake_path`.
        reach: in (0, 1]; the farthest point of the path from its mean, as a fraction of the room that the support has.

    Returns:
        Kernel `(1, h, w)`.

    Raises:
        InputError: a side below 3, an exposure or anxiety not above 0, or a reach outside (0, 1].
    """
    h, w = sides(size)
    check_positive("exposure", exposure)
    check_positive("reach", reach, highest=1.0)
    check_positive("anxiety", anxiety)
    num_steps = max(STEPS_PER_PIXEL * max(h, w), math.ceil(STEPS_PER_UNIT_TIME * exposure))
    path = shake_path(exposure, anxiety, num_steps, rng)
    path -= path.mean()
    room_x, room_y = (w - 1) // 2, (h - 1) // 2
    path *= reach / max(np.abs(path.real).max() / room_x, np.abs(path.imag).max() / room_y)
    return as_kernel(_splat(path, h, w))


def _splat(path: np.ndarray, h: int, w: int) -> np.ndarray:
    """Sum of bilinear splats `(h, w)` of all points of a path about the centre pixel; keeps the centre of mass."""
    # The farthest point may lie on the border pixel, and rounding must not push it off.
    x, y = (path.real + w // 2).clip(0, w - 1), (path.imag + h // 2).clip(0, h - 1)
    left, top = x.astype(int), y.astype(int)
    x, y = x - left, y - top
    raster = np.zeros(h * w)
    for down, weight_y in ((0, 1 - y), (1, y)):
        for right, weight_x in ((0, 1 - x), (1, x)):
            # A point on the last row or column has weight 0 beyond it, so the clipped index receives nothing.
            index = (top + down).clip(max=h - 1) * w + (left + right).clip(max=w - 1)
            raster += np.bincount(index, weight_y * weight_x, minlength=h * w)
    return raster.reshape(h, w)


@dataclass(frozen=True)
class RandomPathKernels:
    """Law of the random-path model: the intensity is uniform in a range; size and intensity as in `random_path`.

    With `centred`, a whole-pixel shift that does not wrap around moves the centre of mass to within half a pixel of the
    centre pixel.
    """

    size: Size
    intensity: tuple[float, float] = (0.2, 1.0)
    centred: bool = True

    def __post_init__(self) -> None:
        sides(self.size)
        check_positive("intensity", *self.intensity, highest=1.0)

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one kernel `(1, h, w)`."""
        kernel = random_path_kernel(self.size, rng.uniform(*self.intensity), rng)
        return centre_kernel(kernel) if self.centred else kernel


@dataclass(frozen=True)
class CameraShakeKernels:
    """Law of the camera-shake model: exposure log-uniform, anxiety and reach uniform in ranges, as in `shake_path`."""

    size: Size
    exposure: tuple[float, float] = (0.5, 16.0)
    anxiety: tuple[float, float] = (0.3, 2.0)
    reach: tuple[float, float] = (0.4, 1.0)

    def __post_init__(self) -> None:
        sides(self.size)
        check_positive("exposure", *self.exposure)
        check_positive("anxiety", *self.anxiety)
        check_positive("reach", *self.reach, highest=1.0)

    def __call__(self, rng: np.random.Generator) -> Tensor:
        """Draw one kernel `(1, h, w)`."""
        return camera_shake_kernel(
            self.size,
            rng,
            exposure=float(np.exp(rng.uniform(*np.log(self.exposure)))),
            anxiety=rng.uniform(*self.anxiety),
            reach=rng.uniform(*self.reach),
        )
