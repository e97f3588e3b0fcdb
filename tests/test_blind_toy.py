"""The blind toy whose posterior is known: the quadrature, the samplers' rows, the picture."""

import re

import pytest
import torch

from benchmarks import blind_toy

Y = 0.7
MEAN_X, STD_X, MEAN_K, STD_K, CORRELATION = range(5)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_the_quadrature_is_what_weighed_draws_from_the_prior_say(sigma):
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2, 2_000_000, generator=generator, dtype=torch.float64)
    x, k = (mean + std * each for (mean, std), each in zip((blind_toy.IMAGE, blind_toy.DENSITY), z, strict=True))
    drawn = blind_toy.moments(x, k, (-0.5 * ((Y - k * x) / sigma) ** 2).exp())
    assert blind_toy.moments(*blind_toy.quadrature(Y, sigma)) == pytest.approx(drawn, abs=2e-3)


@pytest.mark.parametrize("sigma", [0.02, 0.1])
def test_with_a_known_filter_the_posterior_is_gaussian(monkeypatch, sigma):
    monkeypatch.setattr(blind_toy, "DENSITY", (1.2, 1e-4))
    mean, std = blind_toy.IMAGE
    precision = 1 / std**2 + (1.2 / sigma) ** 2
    expected = (mean / std**2 + 1.2 * Y / sigma**2) / precision, precision**-0.5
    assert blind_toy.moments(*blind_toy.quadrature(Y, sigma))[:2] == pytest.approx(expected, rel=1e-3)


def rows(capsys, monkeypatch, *arguments):
    """The cells of each row that the program prints, by name."""
    monkeypatch.setattr("sys.argv", ["blind_toy", *map(str, arguments)])
    blind_toy.main()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    return {name: values for _, name, *values in cells[2:]}


def test_the_gaussian_approximation_is_close_and_the_point_is_not(capsys, monkeypatch, tmp_path):
    """Of 1500 samples: standard errors are below 0.005 for means and spreads, and 0.02 for correlations."""
    picture = tmp_path / "toy.svg"
    found = rows(capsys, monkeypatch, "--samples", 1500, "--steps", 60, "--sigma", 0.1, "--y", Y, "--plot", picture)
    assert list(found) == ["posterior", *blind_toy.guidances()]
    numbers = {name: [float(value) for value in values] for name, values in found.items()}
    posterior = numbers["posterior"]
    assert numbers["joint PiGDM"][:CORRELATION] == pytest.approx(posterior[:CORRELATION], abs=0.03)
    assert numbers["joint PiGDM"][CORRELATION] == pytest.approx(posterior[CORRELATION], abs=0.1)
    assert numbers["DPS, likelihood"][STD_X] < 0.9 * posterior[STD_X]  # a point has no spread: it is too sure
    assert numbers["DPS, likelihood"][CORRELATION] < posterior[CORRELATION] - 0.1
    assert numbers["DPS, norm"][STD_X] > 1.5 * posterior[STD_X]  # and its norm knows no sigma
    drawn = picture.read_text()
    assert len(re.findall("<text", drawn)) == len(blind_toy.guidances())
    assert len(re.findall("<circle", drawn)) > 0.9 * 3 * blind_toy.SHOWN


def test_the_region_holds_most_of_the_posterior():
    x, k, density = blind_toy.quadrature(Y, 0.1)
    lines = {round(at, 9): (low, high) for at, low, high in blind_toy.credible_region(Y, 0.1)}
    columns = [index for index in range(0, blind_toy.GRID, 4) if round(float(x[index, 0]), 9) in lines]
    inside = torch.stack(
        [(k[i] >= lines[round(float(x[i, 0]), 9)][0]) & (k[i] <= lines[round(float(x[i, 0]), 9)][1]) for i in columns]
    )
    share = (density[columns] * inside).sum() / density[::4].sum()
    assert float(share) == pytest.approx(0.9, abs=0.005)


def test_a_row_without_numbers_says_why(capsys, monkeypatch):
    """With few steps the point approximation climbs out of a narrow likelihood."""
    found = rows(capsys, monkeypatch, "--samples", 50, "--steps", 30, "--sigma", 0.02)
    assert found["DPS, likelihood"][0].startswith("50 of 50 samples diverged: ")
    assert "take more (--steps)" in found["DPS, likelihood"][0]
    assert "nan" not in "".join(map(str, found.values()))


def test_the_gram_matrix_is_that_of_the_derivatives():
    image, kernel, residual = (torch.tensor(value).reshape(1, 1, 1, 1) for value in (0.6, 1.3, 0.25))
    toy = blind_toy.Filter()
    by_image, by_kernel = torch.autograd.functional.jacobian(lambda x, k: toy(x, kernel=k), (image, kernel))
    gram = 0.3 * by_image.square() + 0.7 * by_kernel.square() + 0.3 * 0.7 + 0.01  # the third of both errors
    r2 = {"image": torch.tensor([0.3]), "kernel": torch.tensor([0.7])}
    found = toy.solve_joint_gram(residual, r2, torch.tensor([0.01]), image=image, kernel=kernel)
    torch.testing.assert_close(found, residual / gram.reshape(1, 1, 1, 1))
