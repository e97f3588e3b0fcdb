"""The blur operator: laws against dense matrices in float64, recorded numbers of Fast EM, edge cases."""

import pytest
import torch

from codiffuse.errors import InputError
from codiffuse.fourier import BOUNDARIES
from codiffuse.operators.blur import BlurOperator
from codiffuse.operators.conjugate_gradients import conjugate_gradients

IMAGE_SIZE = (6, 7)
KERNEL_SIZES = [(3, 3), (4, 2)]
EXACT = {"cg_iterations": 200, "cg_tolerance": 1e-13, "kernel_cg_iterations": 200, "kernel_cg_tolerance": 1e-13}
R2 = torch.tensor([0.3, 0.0], dtype=torch.float64)
SIGMA2 = torch.tensor([0.01, 0.04], dtype=torch.float64)


def randn(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def random_kernel(size, batch=2, seed=1, dtype=torch.float64):
    kernel = torch.rand(batch, 1, *size, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return kernel / kernel.sum((-2, -1), keepdim=True)


def dense_image_matrix(operator, kernel, image_size):
    """`A` of one kernel `(1, 1, h, w)`: a column is the blurred delta at one pixel."""
    count = image_size[0] * image_size[1]
    deltas = torch.eye(count, dtype=kernel.dtype).reshape(1, count, *image_size)
    zero = operator(torch.zeros_like(deltas[:, :1]), kernel=kernel)
    return (operator(deltas, kernel=kernel) - zero).reshape(count, -1).T


def dense_kernel_matrix(operator, image, kernel_size):
    """`A(x)` of one plane `(1, 1, H, W)`: a column is the image convolved with the delta at one kernel pixel."""
    count = kernel_size[0] * kernel_size[1]
    deltas = torch.eye(count, dtype=image.dtype).reshape(count, 1, *kernel_size)
    return operator(image.expand(count, -1, -1, -1), kernel=deltas).reshape(count, -1).T


def operators(boundary):
    return [BlurOperator(boundary, **EXACT)] + ([BlurOperator("zero", 0.5, **EXACT)] if boundary == "zero" else [])


@pytest.mark.parametrize("kernel_size", KERNEL_SIZES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_adjoint_is_the_transpose(boundary, kernel_size):
    for operator in operators(boundary):
        kernel = random_kernel(kernel_size, batch=1)
        A = dense_image_matrix(operator, kernel, IMAGE_SIZE)
        y_shape = operator(torch.zeros(1, 1, *IMAGE_SIZE, dtype=A.dtype), kernel=kernel).shape[-2:]
        assert operator.image_shape(y_shape, kernel_size=kernel_size) == IMAGE_SIZE
        residual = randn(1, 1, *y_shape)
        back = operator.adjoint(residual, kernel=kernel)
        torch.testing.assert_close(back.flatten(), A.T @ residual.flatten())


@pytest.mark.parametrize("kernel_size", KERNEL_SIZES)
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_solve_gram_is_the_dense_solve(boundary, kernel_size):
    for operator in operators(boundary):
        kernel = random_kernel(kernel_size)
        blurred = operator(randn(2, 3, *IMAGE_SIZE), kernel=kernel)
        residual = randn(*blurred.shape, seed=2)
        solved = operator.solve_gram(residual, R2, SIGMA2, kernel=kernel)
        for b in range(2):
            A = dense_image_matrix(operator, kernel[b : b + 1], IMAGE_SIZE)
            gram = R2[b] * A @ A.T + SIGMA2[b] * torch.eye(len(A), dtype=A.dtype)
            expected = torch.linalg.solve(gram, residual[b].flatten(1).T).T
            torch.testing.assert_close(solved[b].flatten(1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_guidance_direction_is_its_composition(boundary):
    operator = BlurOperator(boundary, **EXACT)
    kernel, image = random_kernel((4, 3)), randn(2, 3, *IMAGE_SIZE)
    y = randn(*operator(image, kernel=kernel).shape, seed=2)
    direction = operator.guidance_direction(y, image, R2, SIGMA2, kernel=kernel)
    residual = y - operator(image, kernel=kernel)
    expected = operator.adjoint(operator.solve_gram(residual, R2, SIGMA2, kernel=kernel), kernel=kernel)
    torch.testing.assert_close(direction, expected)


def test_guidance_direction_takes_spectra_at_hand():
    operator, kernel, image, y = BlurOperator(), random_kernel((3, 3)), randn(2, 3, 6, 7), randn(2, 3, 6, 7, seed=2)
    expected = operator.guidance_direction(y, image, R2, SIGMA2, kernel=kernel)
    spectra = {"y_hat": torch.fft.rfft2(y), "image_hat": torch.fft.rfft2(image)}
    unused = torch.full_like(y, float("nan"))
    torch.testing.assert_close(
        operator.guidance_direction(unused, unused, R2, SIGMA2, kernel=kernel, **spectra), expected
    )


@pytest.mark.parametrize("boundary", ["circular", "reflect", "unknown"])
def test_particles_share_kernel_and_measurement(boundary):
    operator, kernel, particles = BlurOperator(boundary), random_kernel((4, 3)), randn(2, 5, 3, *IMAGE_SIZE)
    y = randn(*operator(particles[:, :1], kernel=kernel).shape, seed=2)
    together = operator.guidance_direction(y, particles, R2, SIGMA2, kernel=kernel)
    assert together.shape == particles.shape
    for i in range(5):
        alone = operator.guidance_direction(y[:, 0], particles[:, i], R2, SIGMA2, kernel=kernel)
        torch.testing.assert_close(together[:, i], alone)


@pytest.mark.parametrize("boundary", ["symmetric", "zero", "unknown"])
def test_solve_gram_does_not_depend_on_batch_neighbours(boundary):
    """The first image needs many more steps than the second, which must not move meanwhile."""
    operator = BlurOperator(boundary, cg_tolerance=0.03)
    kernel, r2 = random_kernel((9, 9)), torch.tensor([1.0, 0.05], dtype=torch.float64)
    sigma2 = torch.tensor([1e-5, 1e-2], dtype=torch.float64)
    residual = randn(2, 1, 30, 30)
    together = operator.solve_gram(residual, r2, sigma2, kernel=kernel)
    alone = operator.solve_gram(residual[1:], r2[1:], sigma2[1:], kernel=kernel[1:])
    torch.testing.assert_close(together[1:], alone, rtol=1e-12, atol=1e-12)
    exact = BlurOperator(boundary, **EXACT).solve_gram(residual, r2, sigma2, kernel=kernel)
    assert (together - exact)[1].norm() > 1e-4 * exact[1].norm()


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_masked_pixels_leave_the_gram_matrix(boundary):
    operator, kernel = BlurOperator(boundary, **EXACT), random_kernel((4, 3))
    residual = randn(*operator(randn(2, 3, *IMAGE_SIZE), kernel=kernel).shape, seed=2)
    mask = random_mask(residual.shape[-2:])
    solved = operator.solve_gram(residual, R2, SIGMA2, kernel=kernel, mask=mask)
    for b in range(2):
        kept = mask[b].flatten() > 0
        A = dense_image_matrix(operator, kernel[b : b + 1], IMAGE_SIZE)[kept]
        gram = R2[b] * A @ A.T + SIGMA2[b] * torch.eye(len(A), dtype=A.dtype)
        expected = torch.zeros_like(residual[b].flatten(1))
        expected[:, kept] = torch.linalg.solve(gram, residual[b].flatten(1)[:, kept].T).T
        torch.testing.assert_close(solved[b].flatten(1), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_masked_pixels_leave_the_kernel_equations(boundary):
    operator, y, images, anchor, alpha = kernel_problem(boundary, (3, 3))
    mask = random_mask(y.shape[-2:])
    solved = operator.normal_equations(y, images, kernel_size=(3, 3), mask=mask).prepare(alpha)(anchor)
    for b in range(2):
        expected = dense_kernel_solve(
            operator, y[b], images[b], anchor[b, 0], alpha[b], alpha[b] * anchor[b, 0], mask[b].flatten()
        )
        torch.testing.assert_close(solved[b, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boundary", ["circular", "unknown"])
def test_what_stands_under_the_mask_does_not_matter(boundary):
    operator, y, images, anchor, alpha = kernel_problem(boundary, (3, 3))
    mask = random_mask(y.shape[-2:])

    def both(measured):
        equations = operator.normal_equations(measured, images, kernel_size=(3, 3), mask=mask)
        direction = operator.guidance_direction(
            measured, images[:, 0], R2, SIGMA2, kernel=random_kernel((3, 3)), mask=mask
        )
        return equations.prepare(alpha)(anchor), direction

    for spoilt, clean in zip(both(y + 1e3 * (1 - mask)), both(y), strict=True):
        torch.testing.assert_close(spoilt, clean)


@pytest.mark.parametrize("boundary", ["reflect", "unknown"])
def test_solve_gram_of_nothing_is_nothing(boundary):
    solved = BlurOperator(boundary).solve_gram(
        torch.zeros(2, 3, 6, 7), R2.float(), SIGMA2.float(), kernel=random_kernel((3, 3)).float()
    )
    assert (solved == 0).all()


def kernel_problem(boundary, kernel_size, pad_value=0.0):
    """Two particles of three channels, and an anchor, for two measurements."""
    operator = BlurOperator(boundary, pad_value, **EXACT)
    images = randn(2, 2, 3, *IMAGE_SIZE)
    y = randn(*operator(images[:, 0], kernel=random_kernel(kernel_size)).shape, seed=2)
    alpha = torch.tensor([0.7, 5.0], dtype=torch.float64)
    return operator, y, images, random_kernel(kernel_size, seed=3), alpha


def random_mask(shape):
    return (torch.rand(2, 1, *shape, generator=torch.Generator().manual_seed(5)) < 0.7).double()


def dense_kernel_solve(operator, y, images, anchor, ridge, weighted_anchor, mask=1.0):
    """Least squares of one measurement: images `(n, C, H, W)`, y `(C, H', W')`, anchor `(h, w)`, mask `(H' W',)`."""
    normal = ridge * torch.eye(anchor.numel(), dtype=y.dtype)
    rhs = weighted_anchor.flatten()
    for image in images:
        for x, target in zip(image, y, strict=True):
            A = dense_kernel_matrix(operator, x[None, None], anchor.shape)
            normal, rhs = normal + A.T @ (mask * A.T).T, rhs + A.T @ (mask * target.flatten())
    return torch.linalg.solve(normal, rhs).reshape(anchor.shape)


@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES)
@pytest.mark.parametrize("boundary", [*BOUNDARIES[1:], "gray"])
def test_kernel_equations_are_least_squares_on_the_support(boundary, kernel_size, with_extra):
    boundary, pad_value = ("zero", 0.5) if boundary == "gray" else (boundary, 0.0)
    operator, y, images, anchor, alpha = kernel_problem(boundary, kernel_size, pad_value)
    extra = torch.tensor([2.0, 0.1], dtype=torch.float64) if with_extra else None
    equations = operator.normal_equations(y, images, kernel_size=kernel_size)
    solved = equations.prepare(alpha, extra)(anchor)
    assert equations.num_images == 2
    for b in range(2):
        ridge = alpha[b] + (extra[b] if with_extra else 0)
        expected = dense_kernel_solve(operator, y[b], images[b], anchor[b, 0], ridge, alpha[b] * anchor[b, 0])
        torch.testing.assert_close(solved[b, 0], expected, rtol=1e-9, atol=1e-9)


def on_whole_grid(kernel, shape):
    """A kernel with the same centre that fills the grid."""
    (h, w), (height, width) = kernel.shape[-2:], shape
    grid = kernel.new_zeros(*kernel.shape[:-2], *shape)
    top, left = height // 2 - h // 2, width // 2 - w // 2
    grid[..., top : top + h, left : left + w] = kernel
    return grid, (slice(top, top + h), slice(left, left + w))


@pytest.mark.parametrize("with_extra", [False, True])
@pytest.mark.parametrize("pooling", ["joint", "mean"])
@pytest.mark.parametrize("kernel_size", KERNEL_SIZES)
def test_circular_equations_are_least_squares_on_the_grid_then_cropped(kernel_size, pooling, with_extra):
    operator, y, images, anchor, alpha = kernel_problem("circular", kernel_size)
    extra = torch.tensor([2.0, 0.1], dtype=torch.float64) if with_extra else None
    equations = operator.normal_equations(y, images, kernel_size=kernel_size)
    solved = equations.prepare(alpha, extra, pooling)(anchor)
    assert equations.num_images == 2
    grid, (rows, columns) = on_whole_grid(anchor, IMAGE_SIZE)
    for b in range(2):
        ridge = alpha[b] + (extra[b] if with_extra else 0)
        channels = [slice(0, 3)] if pooling == "joint" else [slice(c, c + 1) for c in range(3)]
        per_channel = [
            dense_kernel_solve(operator, y[b, c], images[b, :, c], grid[b, 0], ridge, alpha[b] * grid[b, 0])
            for c in channels
        ]
        expected = torch.stack(per_channel).mean(0)[rows, columns]
        torch.testing.assert_close(solved[b, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_noiseless_measurement_returns_its_kernel(boundary):
    operator, truth = BlurOperator(boundary, **EXACT), random_kernel((4, 3))
    images = randn(2, 1, 3, 12, 13)
    y = operator(images[:, 0], kernel=truth)
    alpha = torch.full((2,), 1e-9, dtype=torch.float64)
    solved = operator.normal_equations(y, images, kernel_size=(4, 3)).prepare(alpha)(torch.zeros_like(truth))
    torch.testing.assert_close(solved, truth, rtol=0, atol=1e-8)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_a_heavy_anchor_is_returned(boundary):
    operator, y, images, anchor, _ = kernel_problem(boundary, (3, 3))
    alpha = torch.full((2,), 1e12, dtype=torch.float64)
    solved = operator.normal_equations(y, images, kernel_size=(3, 3)).prepare(alpha)(anchor)
    torch.testing.assert_close(solved, anchor, rtol=0, atol=1e-8)


@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_float32_stays_float32_and_is_accurate(boundary):
    operator, kernel, image = BlurOperator(boundary), random_kernel((5, 4)), randn(2, 3, 20, 21).sigmoid()
    y = operator(image, kernel=kernel) + 0.1 * randn(*operator(image, kernel=kernel).shape, seed=4)
    r2, sigma2, anchor = R2, SIGMA2, random_kernel((5, 4), seed=3)

    def run(dtype):
        k, x, target = kernel.to(dtype), image.to(dtype), y.to(dtype)
        direction = operator.guidance_direction(target, 0.9 * x, r2.to(dtype), sigma2.to(dtype), kernel=k)
        equations = operator.normal_equations(target, x[:, None], kernel_size=(5, 4))
        return direction, equations.prepare(torch.ones(2, dtype=dtype))(anchor.to(dtype))

    for single, double in zip(run(torch.float32), run(torch.float64), strict=True):
        assert single.dtype == torch.float32
        assert (single - double).norm() < 1e-3 * double.norm()


def test_conjugate_gradients_solve_each_plane_and_stop_at_the_tolerance():
    matrix = torch.logspace(0, 3, 64, dtype=torch.float64).reshape(8, 8)  # diagonal, slow to converge
    rhs = randn(2, 3, 8, 8)
    applications = 0

    def solve(tolerance):
        nonlocal applications
        applications = 0

        def apply(v):
            nonlocal applications
            applications += 1
            return matrix * v

        options = {"start": torch.zeros_like(rhs), "precondition": lambda v: v, "iterations": 500}
        return conjugate_gradients(apply, rhs, **options, tolerance=tolerance)

    torch.testing.assert_close(solve(1e-12), rhs / matrix, rtol=1e-8, atol=1e-10)
    assert applications < 200
    relative_residual = (rhs - matrix * solve(0.1)).flatten(2).norm(dim=2) / rhs.flatten(2).norm(dim=2)
    assert relative_residual.max() <= 0.1
    assert relative_residual.min() > 0.05


def test_recorded_m_step_solution(fixture_npz):
    """The released Fast EM: one data step from a delta, channel by channel, on the whole grid (Eq. 24)."""
    data = fixture_npz("numeric/mstep_hqs.npz")
    images, y = torch.from_numpy(data["x"])[None], torch.from_numpy(data["y"])
    alpha = torch.tensor([float(data["sigma"] ** 2 * data["beta"])])
    anchor = torch.zeros(1, 1, 48, 48)
    anchor[..., 24, 24] = 1
    for n in (1, 4):
        recorded = torch.from_numpy(data[f"n{n}/data_solution_raw_iter1"])
        per_channel = []
        for c in range(3):
            equations = BlurOperator().normal_equations(y[:, c : c + 1], images[:, :n, c : c + 1], kernel_size=(48, 48))
            per_channel.append(equations.prepare(alpha)(anchor))
        solved = torch.cat(per_channel, dim=1)
        torch.testing.assert_close(solved.roll((-24, -24), (-2, -1)), recorded, rtol=0, atol=1e-4)

        # Mean pooling, cropped, projected: the recorded kernel after one iteration without a regulariser.
        mean = BlurOperator().normal_equations(y, images[:, :n], kernel_size=(9, 9)).prepare(alpha, pooling="mean")
        kernel = mean(anchor[..., 20:29, 20:29]).clamp_min(0)
        recorded = torch.from_numpy(data[f"n{n}/identity/iters1"])
        torch.testing.assert_close(kernel / kernel.sum(), recorded, rtol=0, atol=1e-6)


def test_recorded_guidance(fixture_npz):
    data = fixture_npz("numeric/mstep_hqs.npz")
    image, y, kernel = (torch.from_numpy(data[name]) for name in ("x", "y", "k_true"))
    sigma2 = torch.tensor([float(data["sigma"]) ** 2])
    for name, r, tolerance in (("r0.3", 0.3, 1e-4), ("r0", 0.0, 1e-4 / sigma2.item())):
        direction = BlurOperator().guidance_direction(y, image[:1], torch.tensor([r**2]), sigma2, kernel=kernel)
        recorded = torch.from_numpy(data[f"guidance/out_{name}"])
        torch.testing.assert_close(direction, recorded, rtol=0, atol=tolerance)


def test_unusable_options_are_refused():
    with pytest.raises(InputError, match="'mirror'"):
        BlurOperator("mirror")
    with pytest.raises(InputError, match=r"pad_value = 0\.5"):
        BlurOperator("reflect", pad_value=0.5)
    operator, y, images, _, alpha = kernel_problem("reflect", (3, 3))
    with pytest.raises(InputError, match="'joint'"):
        operator.normal_equations(y, images, kernel_size=(3, 3)).prepare(alpha, pooling="mean")
    with pytest.raises(InputError, match="'sum'"):
        BlurOperator().normal_equations(y, images, kernel_size=(3, 3)).prepare(alpha, pooling="sum")
    with pytest.raises(InputError, match="one kernel for each"):
        operator.adjoint(y, kernel=random_kernel((3, 3), batch=1))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("boundary", BOUNDARIES)
def test_cuda_agrees_with_the_cpu(boundary):
    operator, kernel, image = BlurOperator(boundary, **EXACT), random_kernel((5, 4)), randn(2, 3, 20, 21)
    y = randn(*operator(image, kernel=kernel).shape, seed=2)

    def run(device):
        arguments = [tensor.to(device) for tensor in (y, image, R2, SIGMA2)]
        direction = operator.guidance_direction(*arguments, kernel=kernel.to(device))
        equations = operator.normal_equations(arguments[0], arguments[1][:, None], kernel_size=(5, 4))
        return direction.cpu(), equations.prepare(torch.ones_like(R2).to(device))(kernel.to(device)).cpu()

    torch.testing.assert_close(run("cuda"), run("cpu"))
