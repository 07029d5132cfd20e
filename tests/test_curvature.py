"""The curvature of the objective over W+, against generators whose Jacobian is known."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.curvature import Curvature, measure_curvature
from sgan_core.networks.generator import Pair
from sgan_core.networks.perceptual import Perceptual

NUM_WS, W_DIM, SIDE = 2, 3, 4


class Linear(nn.Module):
    """Draws images as a matrix times the code, so its Jacobian is the matrix, wherever one looks."""

    def __init__(self, matrix: Tensor) -> None:
        super().__init__()
        self.register_buffer("matrix", matrix)
        self.register_buffer("mean_w", torch.zeros(W_DIM, dtype=matrix.dtype))
        self.num_ws, self.config = NUM_WS, SimpleNamespace(z_dim=W_DIM, w_dim=W_DIM)
        self.mapping = nn.Identity()

    def broadcast(self, w: Tensor) -> Tensor:
        return w[:, None].expand(-1, NUM_WS, -1)

    def synthesis(self, w_plus: Tensor) -> Pair:
        image = (w_plus.flatten(1) @ self.matrix.T).view(-1, 1, SIDE, SIDE)
        return Pair(image, image)


class TwoSizes(Perceptual):
    """The left half in detail, and the mean: each feature and the squared error see something else."""

    def __init__(self) -> None:
        super().__init__("coarse")

    def features(self, x: Tensor) -> list[Tensor]:
        left = x[..., : SIDE // 2]
        return [torch.cat([left, 2.0 * left], dim=1), 3.0 * F.avg_pool2d(x, SIDE)]


@pytest.fixture
def generator() -> Linear:
    rng = torch.Generator().manual_seed(0)
    scale = torch.tensor([2.0, 1.5, 1.0, 1.0, 0.7, 0.5], dtype=torch.float64)
    return Linear(torch.randn(SIDE * SIDE, NUM_WS * W_DIM, generator=rng, dtype=torch.float64) * scale)


def _gauss_newton(generator: Linear, mse_weight: float) -> Tensor:
    """Half the second derivative of the objective around a perfect fit: exact, as everything is linear."""
    target = torch.zeros(1, 1, SIDE, SIDE, dtype=torch.float64)
    judge = TwoSizes()

    def objective(code: Tensor) -> Tensor:
        image = generator.synthesis(code.view(1, NUM_WS, W_DIM)).image
        distance = judge.distance(judge.features(image), judge.features(target))
        return (distance + mse_weight * image.square().mean()).squeeze()

    return torch.autograd.functional.hessian(objective, target.new_zeros(NUM_WS * W_DIM)) / 2.0


@pytest.mark.parametrize("mse_weight", [0.1, 30.0])
def test_it_is_the_gauss_newton_matrix_of_the_objective(generator, mse_weight):
    found = measure_curvature(generator, TwoSizes(), mse_weight=mse_weight, samples=20_000, seed=0)
    exact = _gauss_newton(generator, mse_weight)
    basis = found.directions.flatten(1).double()
    built = basis.T @ torch.diag(found.values.double()) @ basis
    torch.testing.assert_close(built, exact / torch.linalg.matrix_norm(exact, ord=2), atol=0.02, rtol=0.0)


def test_forward_is_about_the_inverse(generator):
    curvature = measure_curvature(generator, TwoSizes(), mse_weight=0.1, samples=2_000, seed=0)
    basis = curvature.directions.flatten(1).double()
    torch.testing.assert_close(basis @ basis.T, torch.eye(6, dtype=torch.float64), atol=1e-5, rtol=0.0)
    matrix = basis.T @ torch.diag(curvature.values.double() + 1e-3) @ basis  # made regular by the ridge
    vector = torch.randn(5, NUM_WS, W_DIM, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    back = (curvature(vector).flatten(1) @ matrix).view_as(vector)
    torch.testing.assert_close(back / 1e-3, vector, atol=1e-3, rtol=1e-3)


def test_few_samples_leave_the_other_directions_as_they_are(generator):
    curvature = measure_curvature(generator, TwoSizes(), mse_weight=0.1, samples=2, seed=0)
    assert (curvature.values > 0).sum() == 2
    _, _, basis = torch.linalg.svd(curvature.directions[:2].flatten(1).double())
    across = basis[-1].view(1, NUM_WS, W_DIM)
    torch.testing.assert_close(curvature(across), across)


def test_a_seed_gives_the_same_and_leaves_the_callers_random_numbers(generator):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, second, other = (
        measure_curvature(generator, TwoSizes(), mse_weight=0.1, samples=40, seed=seed) for seed in (3, 3, 4)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.directions, second.directions)
    assert not torch.equal(first.values, other.values)


def test_it_reports_and_keeps_at_most_256_directions(generator):
    news: list[tuple[int, int]] = []
    measure_curvature(
        generator, TwoSizes(), mse_weight=0.1, samples=40, seed=0, on_progress=lambda *n: news.append(n)
    )
    assert news == [(32, 40), (40, 40)]
    assert Curvature(10, 128).directions.shape == (256, 10, 128)
