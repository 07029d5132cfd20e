"""How strongly each direction of W+ changes an image: what makes the steps of inversion the right length."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual

DIRECTIONS = 256  # that are kept; with 128 the loss after 100 steps was 1 % higher
SAMPLES = 1536  # with 768 it was 5 % higher
_BATCH = 32
_RIDGE = 1e-3  # curvature of all other directions, in the largest curvature


class Curvature(nn.Module):
    """The directions of W+ that change an image most, and how much: a property of the generator alone.

    The Gauss-Newton matrix J^T J of the paper's reconstruction loss (Eq. 7), J being the Jacobian of the image and
    its perceptual features by w_plus, as its largest eigenvalues; all other directions count as nearly flat.
    """

    directions: Tensor  # (count, num_ws, w_dim), orthonormal
    values: Tensor  # (count,) their curvature, falling, in the largest

    def __init__(self, num_ws: int, w_dim: int) -> None:
        super().__init__()
        count = min(DIRECTIONS, num_ws * w_dim)
        self.register_buffer("directions", torch.zeros(count, num_ws, w_dim))
        self.register_buffer("values", torch.zeros(count))

    def forward(self, vector: Tensor) -> Tensor:
        """About the inverse of the curvature, up to a factor, times a vector (B, num_ws, w_dim)."""
        basis = self.directions.flatten(1).to(vector)  # (count, num_ws * w_dim)
        share = (self.values / (self.values + _RIDGE)).to(vector)
        flat = vector.flatten(1)
        return (flat - (flat @ basis.T * share) @ basis).view_as(vector)


def measure_curvature(
    generator: Generator,
    perceptual: Perceptual,
    *,
    mse_weight: float,
    samples: int = SAMPLES,
    seed: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Curvature:
    """Estimate the curvature at random codes, in ``samples`` backward passes of one image each.

    For a random direction v of image and features, with the weights that Eq. 7 gives to them, g = J^T v has the
    mean E[g g^T] = J^T J. mse_weight: lambda_3. The same seed gives the same answer.
    """
    generator.requires_grad_(False)
    rng = torch.Generator().manual_seed(seed)

    def normal(shape: torch.Size | tuple[int, ...]) -> Tensor:
        return torch.randn(shape, generator=rng).to(generator.mean_w)

    gradients = []
    for done in range(0, samples, _BATCH):
        z = normal((min(_BATCH, samples - done), generator.config.z_dim))
        with torch.no_grad():
            w_plus = generator.broadcast(generator.mapping(z))
        w_plus = w_plus.clone().requires_grad_(True)
        image = generator.synthesis(w_plus).image
        features = perceptual.features(image)
        # The distance is a mean over places and a sum over channels; the MSE a mean over both.
        probes = [normal(part.shape) / part[0, 0].numel() ** 0.5 for part in features]
        probes.append(normal(image.shape) * (mse_weight / image[0].numel()) ** 0.5)
        (gradient,) = torch.autograd.grad([*features, image], w_plus, probes)
        gradients.append(gradient.flatten(1).double())
        on_progress(done + len(z), samples)
    found = torch.cat(gradients) / samples**0.5
    # Of few samples of long codes: the eigenvectors of J^T J are the right singular vectors.
    _, singular, right = torch.linalg.svd(found, full_matrices=False)
    curvature = Curvature(generator.num_ws, generator.config.w_dim).to(generator.mean_w.device)
    count = min(len(curvature.values), samples)
    curvature.directions[:count] = right[:count].view(count, *curvature.directions.shape[1:]).float()
    curvature.values[:count] = (singular[:count] / singular[0].clamp(min=1e-30)).square().float()
    return curvature
