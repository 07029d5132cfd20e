"""Terms of inversion for images whose intensities mean something else."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sgan_core.config import GeneratorConfig, InversionConfig
from sgan_core.errors import InputError
from sgan_core.inversion import invert
from sgan_core.networks.generator import Generator
from sgan_core.reconstruction import (
    CURVE_KNOTS,
    RECONSTRUCTIONS,
    IntensityMapReconstruction,
    MindReconstruction,
    PaperReconstruction,
    Reconstruction,
    fit_curve,
    hat_functions,
    make_reconstruction,
    recoloured,
    roughness,
    self_similarities,
    unexplained_shares,
)

KNOTS = np.linspace(-1.0, 1.0, CURVE_KNOTS)


def _load_benchmark():
    """The benchmark's terms: it is a script, not a package."""
    file = Path(__file__).parents[1] / "benchmarks" / "reconstruction_terms.py"
    spec = importlib.util.spec_from_file_location("reconstruction_terms", file)
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


benchmark = _load_benchmark()

TERMS = {
    "intensity_map": IntensityMapReconstruction,
    "map_mind": lambda: make_reconstruction("map-mind", None, InversionConfig()),
    "mse": benchmark.Squared,
    "map_per_volume": benchmark.PooledIntensityMap,
    "inverse_map": benchmark.InverseIntensityMap,
    "mind": MindReconstruction,
    "lncc": benchmark.LocalCorrelation,
    "ngf": benchmark.GradientField,
    "mi": benchmark.MutualInformation,
}
BLIND_TO_SIGN = ("intensity_map", "map_per_volume", "inverse_map", "mind", "lncc", "ngf", "mi", "map_mind")


def _scene(seed: int = 0, count: int = 2, side: int = 24, channels: int = 1) -> Tensor:
    """Smooth shapes with a little noise, (count, channels, side, side) float64 within [-0.9, 0.9]."""
    rng = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, channels, 6, 6, generator=rng, dtype=torch.float64)
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic")
    noise = torch.randn(smooth.shape, generator=rng, dtype=torch.float64)
    return 0.9 * torch.tanh(smooth + 0.05 * noise)


def _loss(term: Reconstruction, image: Tensor, target: Tensor) -> Tensor:
    term.aim(target)
    return sum(term.terms(image).values())


# --- the intensity map against what must come out


def test_any_curve_of_the_image_is_explained_completely():
    """Dark becomes bright, the middle dark again: what MRI does to CT."""
    image = _scene()
    knots = np.array([0.8, -0.9, 0.1, 0.9, -0.5, -0.7, 0.6])
    target = torch.from_numpy(np.interp(image.numpy(), KNOTS, knots))
    assert (
        _loss(IntensityMapReconstruction(), image, target) < 0.08
    ).all()  # the rest is the curve's bending
    assert (_loss(benchmark.Squared(), image, target) > 0.4).all()
    image_of_something_else = _scene(seed=1)
    assert (_loss(IntensityMapReconstruction(), image_of_something_else, target) > 0.7).all()


def test_a_smooth_curve_is_explained_too():
    image = _scene()
    target = torch.cos(4.0 * image)
    assert (_loss(IntensityMapReconstruction(), image, target) < 0.05).all()


def test_every_slice_has_a_curve_of_its_own():
    image = _scene()
    target = torch.cat([image[:1] ** 2, -image[1:]])
    own = _loss(IntensityMapReconstruction(), image, target)
    shared = _loss(benchmark.PooledIntensityMap(), image, target)
    assert own.max() < 0.05
    assert shared.max() > 0.2


def test_noise_is_not_explained():
    rng = torch.Generator().manual_seed(3)
    image, target = torch.rand(2, 1, 1, 64, 64, generator=rng, dtype=torch.float64) * 2 - 1
    assert float(_loss(IntensityMapReconstruction(), image, target)) == pytest.approx(1.0, abs=0.02)


def _reference(image: np.ndarray, target: np.ndarray) -> float:
    """The unexplained share of one plane by numpy: interpolation of unit vectors, least squares on stacked rows."""
    basis = np.stack([np.interp(image.ravel(), KNOTS, unit) for unit in np.eye(CURVE_KNOTS)], axis=1)
    values = target.ravel() - target.mean()
    bend = np.diff(np.eye(CURVE_KNOTS), n=2, axis=0)
    stacked = np.vstack(
        [basis / np.sqrt(len(values)), np.sqrt(1e-3) * bend, np.sqrt(1e-4) * np.eye(CURVE_KNOTS)]
    )
    wanted = np.concatenate([values / np.sqrt(len(values)), np.zeros(len(bend) + CURVE_KNOTS)])
    curve = np.linalg.lstsq(stacked, wanted, rcond=None)[0]
    return float(np.square(stacked @ curve - wanted).sum() / (values.var() + 1e-3))


def test_it_is_least_squares_as_numpy_does_it():
    image, target = _scene(0, channels=3), _scene(1, channels=3)
    found = _loss(IntensityMapReconstruction(), image, target)
    expected = [
        np.mean([_reference(*planes) for planes in zip(*pair, strict=True)])
        for pair in zip(image.numpy(), target.numpy(), strict=True)
    ]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-9)


def test_hat_functions_interpolate():
    x = torch.linspace(-1.3, 1.3, 53, dtype=torch.float64)
    knots = torch.tensor([0.3, -1.0, 2.0, 0.0, 0.5], dtype=torch.float64)
    expected = np.interp(x.numpy(), np.linspace(-1, 1, 5), knots.numpy())  # constant beyond, like clipping
    np.testing.assert_allclose((hat_functions(x, 5) @ knots).numpy(), expected, atol=1e-12)


def test_the_fitted_curve_is_the_minimum():
    basis = hat_functions(_scene().flatten(1), CURVE_KNOTS)
    values = _scene(1).flatten(1)
    curve = fit_curve(basis, values)

    def cost(c: Tensor) -> Tensor:
        return ((basis @ c[..., None])[..., 0] - values).square().mean(dim=1) + roughness(c)

    rng = torch.Generator().manual_seed(0)
    for _ in range(20):
        step = 0.01 * torch.randn(curve.shape, generator=rng, dtype=torch.float64)
        assert (cost(curve + step) > cost(curve)).all()


def test_contrast_and_brightness_of_the_target_do_not_matter():
    image, target = _scene(0), _scene(1)
    plain = _loss(IntensityMapReconstruction(), image, target)
    other = _loss(IntensityMapReconstruction(), image, -0.7 * target + 0.2)
    torch.testing.assert_close(plain, other, rtol=0.02, atol=0.0)  # the floor of the variance is not scaled


def test_the_gradient_is_that_of_the_loss_with_the_curve_fitted_anew():
    """The curve is held constant in the gradient, and may be: it is at its optimum."""
    _check_gradient(IntensityMapReconstruction())


def test_recolouring_gives_the_image_the_brightness_of_the_target():
    image = _scene(0, channels=3)
    target = torch.cos(4.0 * image)
    shown = recoloured(image, target)
    assert float((shown - target).square().mean()) < 0.02 * float(target.var())
    assert float((image - target).square().mean()) > float(target.var())
    with pytest.raises(RuntimeError, match="does not require grad"):
        recoloured(image.requires_grad_(True), target).sum().backward()


# --- all terms, winner or not


def _check_gradient(term: Reconstruction) -> None:
    image, target = _scene(0), _scene(1)
    rng = torch.Generator().manual_seed(5)
    direction = torch.randn(image.shape, generator=rng, dtype=torch.float64)
    moving = image.clone().requires_grad_(True)
    (gradient,) = torch.autograd.grad(_loss(term, moving, target).sum(), moving)
    step = 1e-6  # small: hat functions have corners
    numeric = (
        _loss(term, image + step * direction, target) - _loss(term, image - step * direction, target)
    ).sum()
    assert float((gradient * direction).sum()) == pytest.approx(
        float(numeric) / (2 * step), rel=2e-3, abs=1e-6
    )


@pytest.mark.parametrize("name", ["mse", "lncc", "mi", "mind"])
def test_gradients_agree_with_finite_differences(name):
    _check_gradient(TERMS[name]())


@pytest.mark.parametrize("name", TERMS)
def test_keep_goes_on_with_some_slices(name):
    image, target = _scene(0, 3), _scene(1, 3)
    rows = torch.tensor([True, False, True])
    term = TERMS[name]()
    if name == "map_per_volume":  # its slices are not independent: the curve is fitted to those that are left
        expected = _loss(term, image[rows], target[rows])
    else:
        expected = _loss(term, image, target)[rows]
        term.aim(target)
    term.aim(target)
    term.keep(rows)
    torch.testing.assert_close(sum(term.terms(image[rows]).values()), expected)


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize("empty", ["target", "image", "both"])
def test_a_constant_slice_gives_numbers(name, empty):
    image, target = (x.float() for x in (_scene(0), _scene(1)))
    if empty in ("target", "both"):
        target = torch.full_like(target, -1.0)
    if empty in ("image", "both"):
        image = torch.full_like(image, -1.0)
    image.requires_grad_(True)
    loss = _loss(TERMS[name](), image, target)
    assert loss.isfinite().all()
    (gradient,) = torch.autograd.grad(loss.sum(), image)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", BLIND_TO_SIGN)
def test_a_negative_is_as_good_as_the_image(name):
    image = _scene()
    term = TERMS[name]()
    same, negative, other = (_loss(term, image, x) for x in (image, -image, _scene(1)))
    torch.testing.assert_close(same, negative, atol=1e-6, rtol=1e-3)
    assert (other > same + 0.01).all()


def _similarities_by_hand(image: np.ndarray, dilation: int) -> np.ndarray:
    """Self-similarities of one plane (H, W) by numpy's indices and scipy's Gaussian."""
    from scipy.ndimage import gaussian_filter

    row, column = np.indices(image.shape)

    def seen(down: int, right: int) -> np.ndarray:
        rows = np.clip(row + down * dilation, 0, image.shape[0] - 1)
        return image[rows, np.clip(column + right * dilation, 0, image.shape[1] - 1)]

    above, right, below, left = seen(-1, 0), seen(0, 1), seen(1, 0), seen(0, -1)
    pairs = ((above, right), (right, below), (below, left), (left, above))
    distance = np.stack([gaussian_filter((a - b) ** 2, 0.8, mode="nearest", radius=2) for a, b in pairs])
    distance -= distance.min(axis=0)
    variance = distance.mean(axis=0)
    typical = variance.mean() + 1e-8
    return np.exp(-distance / np.clip(variance, 1e-3 * typical, 1e3 * typical))


@pytest.mark.parametrize("dilation", [1, 2])
def test_self_similarities_are_those_of_scipy(dilation):
    image = _scene(0, 1)
    expected = _similarities_by_hand(image[0, 0].numpy(), dilation)
    np.testing.assert_allclose(self_similarities(image, dilation)[0].numpy(), expected, rtol=1e-7)


def test_self_similarities_do_not_know_contrast_or_brightness():
    image = _scene()
    changed = self_similarities(-0.4 * image + 0.3, 1)
    torch.testing.assert_close(changed, self_similarities(image, 1), atol=1e-4, rtol=0.0)


def test_mutual_information_is_that_of_the_histogram():
    """Intensities on bin centres: the Parzen windows touch one bin each, so numpy's 2-D histogram is exact."""
    rng = np.random.default_rng(0)
    a = rng.integers(0, 16, (1, 1, 20, 20))
    b = np.where(rng.random(a.shape) < 0.7, a // 2, rng.integers(0, 16, a.shape))
    image, target = (torch.from_numpy(x / 7.5 - 1.0) for x in (a, b))
    joint = np.histogram2d(a.ravel(), b.ravel(), bins=16, range=[[-0.5, 15.5]] * 2)[0] / a.size

    def entropy(p: np.ndarray) -> float:
        return float(-(p[p > 0] * np.log(p[p > 0])).sum())

    expected = 2.0 - (entropy(joint.sum(0)) + entropy(joint.sum(1))) / entropy(joint)
    assert float(_loss(benchmark.MutualInformation(), image, target)) == pytest.approx(expected, abs=1e-4)


def test_local_correlation_of_a_plane_is_scipys_window():
    from scipy.ndimage import gaussian_filter

    image, target = _scene(0, 1), _scene(1, 1)

    def local(x: Tensor) -> np.ndarray:
        return gaussian_filter(x[0, 0].numpy(), 2.0, mode="nearest", truncate=3.0)

    variances = [local(x * x) - local(x) ** 2 + 1e-3 for x in (image, target)]
    covariance = local(image * target) - local(image) * local(target)
    expected = 1.0 - np.mean(covariance**2 / (variances[0] * variances[1]))
    assert float(_loss(benchmark.LocalCorrelation(), image, target)) == pytest.approx(expected, rel=1e-6)


def test_posing_moves_the_body_box_onto_the_other():
    image = torch.full((2, 1, 64, 64), -1.0)
    image[:, :, 10:60, 4:64] = 0.5
    other = torch.full((2, 1, 64, 64), -1.0)
    other[:, :, 14:54, 8:56] = 0.5
    label = (image[:, 0] > 0).numpy().astype(np.uint8)
    slices = benchmark.Slices(image, label, ["a", "a"])
    wanted = benchmark.Slices(other, label, ["b", "b"])
    found = benchmark.posed(slices, like=wanted)
    np.testing.assert_allclose(benchmark.body_boxes(found)["a"], benchmark.body_boxes(wanted)["b"], atol=1.01)
    assert ((found.images[:, 0] > -0.25).numpy() == (found.labels == 1)).mean() > 0.99


# --- in inversion


def test_inversion_finds_the_shape_behind_another_contrast():
    """The target is the generator's own image as a negative: squared error is misled, the intensity map is not."""
    torch.manual_seed(0)
    widths = {4: 8, 8: 8, 16: 8, 32: 8}
    config = GeneratorConfig(32, 1, 2, z_dim=8, w_dim=8, mapping_layers=2, channels=widths, noise=False)
    generator = Generator(config).double().eval()
    generator.update_mean_w(samples=256)
    with torch.no_grad():
        image = generator(torch.randn(2, 8, dtype=torch.float64)).image
    target = -image
    settings = InversionConfig(steps=60, lr=0.05)
    found = invert(target, generator, None, IntensityMapReconstruction(), settings)
    start = invert(target, generator, None, IntensityMapReconstruction(), InversionConfig(steps=0))
    assert (found.loss < 0.3 * start.loss).all()


# --- by name


def test_reconstructions_are_made_by_name():
    config = InversionConfig()
    assert isinstance(make_reconstruction("paper", None, config), PaperReconstruction)
    assert isinstance(make_reconstruction("mind", None, config), MindReconstruction)
    assert list(RECONSTRUCTIONS) == ["paper", "mind", "map-mind"]


def test_map_mind_is_the_map_and_half_of_mind():
    image, target = _scene(0), _scene(1)
    parts = [_loss(term, image, target) for term in (IntensityMapReconstruction(), MindReconstruction())]
    torch.testing.assert_close(_loss(TERMS["map_mind"](), image, target), parts[0] + 0.5 * parts[1])


def test_an_unknown_reconstruction_is_refused_with_the_known_ones():
    with pytest.raises(InputError, match=r"'ncc', expected one of paper, mind, map-mind"):
        make_reconstruction("ncc", None, InversionConfig())


def test_shares_are_equal_where_brightness_means_the_same() -> None:
    torch.manual_seed(0)
    target = torch.rand(3, 1, 24, 24) * 2 - 1
    noisy = (target + 0.2 * torch.randn(target.shape)).clamp(-1, 1)
    plain, curved = unexplained_shares(noisy, target)
    assert ((plain / curved) < 1.3).all()
    plain, curved = unexplained_shares(-noisy, target)
    assert ((plain / curved) > 10).all()
    squared = (noisy - target).square().mean(dim=(1, 2, 3))
    expected = squared / (target.var(dim=(1, 2, 3), correction=0) + 1e-3)
    torch.testing.assert_close(unexplained_shares(noisy, target)[0], expected)
