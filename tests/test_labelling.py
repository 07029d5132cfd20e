"""Who draws the mask, what inversion minimises and why, the better of two starts, agreement of neighbours."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.ndimage import label as connected_components
from torch import Tensor

import sgan_core.labelling
from sgan_core.bundle import Bundle
from sgan_core.errors import InputError
from sgan_core.labelling import SegmentConfig, answers, label_slices, smooth_through_plane
from sgan_core.networks.segmenter import make_student, predict
from sgan_core.reconstruction import MindReconstruction, PaperReconstruction, Weighted
from sgan_core.trust import FEATURES, Anatomy, deep_answers, soft_overlap


@pytest.fixture(scope="module")
def bundle(untrained: Bundle) -> Bundle:
    """An untrained model with an untrained student."""
    return replace(untrained, student=make_student(untrained.config).eval())


def slices(count: int = 5) -> np.ndarray:
    """Noise, (N, 1, 32, 32) in [-1, 1]."""
    return np.random.default_rng(0).uniform(-1, 1, (count, 1, 32, 32)).astype(np.float32)


# --- whose mask --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "method", "steps"),
    [
        (SegmentConfig(), "student", 2),
        (SegmentConfig("careful"), "student", 5),
        (SegmentConfig("fast"), "student", 0),
        (SegmentConfig(steps=1), "student", 1),
        (SegmentConfig(reconstruction="paper"), "inversion", 3),
        (SegmentConfig(reconstruction="mind", steps=0), "encoder", 0),
        (SegmentConfig(encoder_only=True), "encoder", 0),
        (SegmentConfig("careful", encoder_only=True), "encoder", 0),
    ],
)
def test_who_draws_the_mask(bundle: Bundle, config: SegmentConfig, method: str, steps: int) -> None:
    found = label_slices(slices(), bundle, config)
    assert (found.method, found.steps) == (method, steps)
    assert found.student_probs is not None
    given = found.student_probs if method == "student" else found.inverted_probs
    assert found.label_probs is given
    assert not np.array_equal(found.student_probs, found.inverted_probs)


def test_answers_are_those_of_the_networks(bundle: Bundle) -> None:
    images, encoded = _drawn(bundle)
    found = label_slices(images, encoded, SegmentConfig("fast", batch=len(images)))
    assert bundle.student is not None
    np.testing.assert_allclose(found.student_probs, predict(bundle.student, images), atol=1e-3)
    with torch.no_grad():
        pair = bundle.generator.synthesis(encoded.encoder(torch.from_numpy(images)))
    np.testing.assert_allclose(found.inverted_probs, pair.label_logits.softmax(dim=1), atol=1e-3)
    np.testing.assert_allclose(found.reconstructions, images, atol=1e-5)


def test_student_and_generator_see_their_own_sizes(bundle: Bundle) -> None:
    """The student draws at twice the generator's size, which sees the average of each four pixels."""
    images = np.random.default_rng(1).uniform(-1, 1, (4, 1, 64, 64)).astype(np.float32)
    small = images.reshape(4, 1, 32, 2, 32, 2).mean(axis=(3, 5))
    assert bundle.student is not None
    anatomy = Anatomy.of(deep_answers(bundle.student, torch.from_numpy(images)), directions=2)
    found = label_slices(images, bundle, SegmentConfig("fast"), anatomy=anatomy)
    np.testing.assert_allclose(found.student_probs, predict(bundle.student, images), atol=1e-3)
    with torch.no_grad():
        pair = bundle.generator.synthesis(bundle.encoder(torch.from_numpy(small)))
    np.testing.assert_allclose(found.inverted_probs, pair.label_logits.softmax(dim=1), atol=1e-3)
    assert found.label_probs.shape == (4, bundle.config.generator.num_classes, 64, 64)
    assert found.reconstructions is not None
    assert found.reconstructions.shape == (4, 1, 32, 32)
    assert found.features is not None
    assert np.isfinite(found.features).all()
    # Trust compares the two at the generator's size.
    average = found.student_probs.astype(np.float32).reshape(4, -1, 32, 2, 32, 2).mean(axis=(3, 5))
    overlap = soft_overlap(torch.from_numpy(average), torch.from_numpy(found.inverted_probs).float())
    np.testing.assert_allclose(
        found.features[:, list(FEATURES).index("methods")], (1.02 - overlap).log(), atol=5e-3
    )


def test_masks_that_trust_is_calibrated_on_have_the_generators_size(bundle: Bundle) -> None:
    images = np.random.default_rng(1).uniform(-1, 1, (4, 1, 64, 64)).astype(np.float32)
    assert bundle.student is not None
    anatomy = Anatomy.of(deep_answers(bundle.student, torch.from_numpy(images)), directions=2)
    found, masks = answers(images, bundle, "fast", anatomy)
    assert found.shape == (4, len(FEATURES))
    assert {name: mask.shape for name, mask in masks.items()} == {
        "student": (4, 32, 32),
        "encoder": (4, 32, 32),
    }
    probs = predict(bundle.student, images).reshape(4, -1, 32, 2, 32, 2).mean(axis=(3, 5))
    assert (masks["student"] == probs.argmax(axis=1)).mean() > 0.99  # half precision may turn a tie


def test_without_a_student_the_mask_is_that_of_inversion(bundle: Bundle) -> None:
    found = label_slices(slices(), replace(bundle, student=None))
    assert (found.method, found.student_probs, found.features) == ("inversion", None, None)
    assert found.label_probs is found.inverted_probs


@pytest.mark.parametrize("quality", ["fast", "standard", "careful"])
def test_a_student_alone_labels_and_nothing_else(bundle: Bundle, quality: str) -> None:
    assert bundle.student is not None
    alone, seen = replace(bundle, inverter=None), []
    config = SegmentConfig(quality, batch=2)
    found = label_slices(
        slices(), alone, config, on_progress=lambda done, total, _: seen.append((done, total))
    )
    np.testing.assert_allclose(found.label_probs, predict(bundle.student, slices()), atol=1e-3)
    assert (found.method, found.steps, found.inverted_probs, found.reconstructions) == (
        "student",
        0,
        None,
        None,
    )
    assert (found.features, found.chosen) == (None, None)
    assert seen == [(0, 5), (2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize(
    "config",
    [SegmentConfig(encoder_only=True), SegmentConfig(reconstruction="paper"), SegmentConfig(steps=1)],
)
def test_a_student_alone_refuses_what_needs_a_generator(bundle: Bundle, config: SegmentConfig) -> None:
    with pytest.raises(InputError, match="student alone.*sgan-train --resume"):
        label_slices(slices(), replace(bundle, inverter=None), config)


def test_a_row_of_features_for_each_slice(bundle: Bundle) -> None:
    assert bundle.student is not None
    anatomy = Anatomy.of(deep_answers(bundle.student, torch.from_numpy(slices(40))))
    together, apart = (
        label_slices(slices(), bundle, SegmentConfig(batch=n), anatomy=anatomy) for n in (16, 2)
    )
    assert together.features is not None
    assert together.features.shape == (5, len(FEATURES))
    np.testing.assert_allclose(together.features, apart.features, atol=0.1)
    assert label_slices(slices(), bundle).features is None


# --- what trust is calibrated on -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "way"),
    [
        (SegmentConfig("fast"), ("fast", "student")),
        (SegmentConfig(), ("standard", "student")),
        (SegmentConfig("careful", largest_component=True, region=(0.0, 9.0)), ("careful", "student")),
        (SegmentConfig(encoder_only=True), ("fast", "encoder")),
        (SegmentConfig("careful", encoder_only=True, steps=9), ("fast", "encoder")),
        (SegmentConfig("fast", reconstruction="mind"), ("fast", "encoder")),
        (SegmentConfig(steps=2), None),
        (SegmentConfig("fast", steps=7), None),
        (SegmentConfig(reconstruction="paper"), None),
        (SegmentConfig("fast", reconstruction="paper", steps=1), None),
    ],
)
def test_each_way_of_segmenting_has_its_own_calibration_or_none(
    bundle: Bundle, config: SegmentConfig, way: tuple[str, str] | None
) -> None:
    assert config.calibrated_as(bundle) == way


@pytest.mark.parametrize(
    ("quality", "searches", "methods"),
    [
        ("fast", [("encoder", 0)], ["student", "encoder"]),
        ("standard", [("encoder", 2)], ["student"]),
        ("careful", [("encoder", 5), ("mean w", 5)], ["student"]),
    ],
)
def test_trust_is_calibrated_on_what_the_quality_does(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    quality: str,
    searches: list[tuple[str, int]],
    methods: list[str],
) -> None:
    seen: list[tuple[str, int]] = []
    invert = sgan_core.labelling.invert

    def spy(
        target: Tensor, generator: Any, encoder: Any, reconstruction: Any, settings: Any, **more: Any
    ) -> Any:
        seen.append(("mean w" if encoder is None else "encoder", settings.steps))
        return invert(target, generator, encoder, reconstruction, settings, **more)

    monkeypatch.setattr(sgan_core.labelling, "invert", spy)
    assert bundle.student is not None
    anatomy = Anatomy.of(deep_answers(bundle.student, torch.from_numpy(slices(40))))
    features, masks = answers(slices(), bundle, quality, anatomy)
    assert seen == searches
    assert list(masks) == methods
    config = SegmentConfig(quality, encoder_only=quality == "fast")
    found = label_slices(slices(), bundle, config, anatomy=anatomy)
    np.testing.assert_array_equal(features, found.features)
    np.testing.assert_array_equal(masks[found.method], found.label_probs.argmax(axis=1))


# --- the objective -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "negative", "foreign", "name", "words"),
    [
        ("auto", False, None, "paper", "means what it meant in training"),
        ("auto", True, None, "map-mind", "other brightness than in training"),
        ("auto", False, "not in Hounsfield units", "map-mind", "not in Hounsfield units"),
        ("paper", True, "not in Hounsfield units", "paper", "asked for"),
        ("mind", False, None, "mind", "asked for"),
    ],
)
def test_the_objective_is_chosen_from_the_case(
    bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    negative: bool,
    foreign: str | None,
    name: str,
    words: str,
) -> None:
    """The images are what the generator draws for the encoder's guess, or the negatives of that."""
    used: list[Any] = []
    invert = sgan_core.labelling.invert

    def spy(
        target: Tensor, generator: Any, encoder: Any, reconstruction: Any, *rest: Any, **more: Any
    ) -> Any:
        used.append(type(reconstruction))
        return invert(target, generator, encoder, reconstruction, *rest, **more)

    monkeypatch.setattr(sgan_core.labelling, "invert", spy)
    drawn, encoded = _drawn(bundle)
    images = -drawn if negative else drawn
    found = label_slices(images, encoded, SegmentConfig("fast", reconstruction=asked), foreign=foreign)
    assert found.chosen.name == name
    assert words in found.chosen.reason
    kinds = {"paper": PaperReconstruction, "mind": MindReconstruction, "map-mind": Weighted}
    assert used == [kinds[name]]


def _drawn(bundle: Bundle) -> tuple[np.ndarray, Bundle]:
    """Images that the generator draws, and the model with an encoder that knows their codes."""
    with torch.no_grad():
        w_plus = bundle.encoder(torch.from_numpy(slices()))
        drawn = bundle.generator.synthesis(w_plus).image
    knowing: Any = lambda image: w_plus[: len(image)]  # noqa: E731
    return drawn.numpy(), replace(bundle, inverter=replace(bundle.require_inverter(), encoder=knowing))


def test_another_modality_is_shown_in_its_own_brightness(bundle: Bundle) -> None:
    """The negative of what the generator draws is explained by a curve, so the picture shown is the negative.

    Curves end at -1 and 1, which this untrained generator oversteps.
    """
    drawn, encoded = _drawn(bundle)
    negative = -drawn
    found = label_slices(negative, encoded, SegmentConfig("fast"), foreign="a negative")
    inside = np.abs(negative) < 0.9
    assert np.abs(found.reconstructions - negative)[inside].mean() < 0.1
    plain = label_slices(negative, encoded, SegmentConfig("fast", reconstruction="paper"))
    assert np.abs(plain.reconstructions - negative)[inside].mean() > 0.5


def test_careful_takes_the_better_start_for_each_slice(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []
    invert = sgan_core.labelling.invert

    def spy(target: Tensor, *arguments: Any, **options: Any) -> Any:
        seen.append(invert(target, *arguments, **options))
        # The slices disagree on which start is better.
        loss = torch.arange(len(target), dtype=torch.float32)
        seen[-1] = replace(seen[-1], loss=loss if len(seen) == 1 else loss.flip(0))
        return seen[-1]

    monkeypatch.setattr(sgan_core.labelling, "invert", spy)
    found = label_slices(slices(4), bundle, SegmentConfig("careful", steps=2, reconstruction="paper"))
    first, second = (part.image.numpy() for part in seen)
    np.testing.assert_array_equal(found.reconstructions[:2], first[:2])
    np.testing.assert_array_equal(found.reconstructions[2:], second[2:])


# --- neighbours --------------------------------------------------------------------------------------


def volume_of(mask: np.ndarray) -> np.ndarray:
    """A mask (N, S, S) as probabilities of 0.1 and 0.9."""
    inside = np.where(mask, 0.9, 0.1).astype(np.float16)
    return np.stack([1 - inside, inside], axis=1)


def test_neighbours_overrule_a_slice_that_flickers() -> None:
    mask = np.zeros((9, 16, 16), bool)
    mask[2:7, 4:10, 4:10] = True
    mask[4, 4:10, 4:7] = False  # a hole in one slice
    mask[8, 12:15, 12:15] = True  # a speck in one slice
    mask[1, 1:3, 12:15] = True
    found = smooth_through_plane(volume_of(mask)).argmax(axis=1) > 0
    assert found[4, 4:10, 4:10].all()
    assert not found[1, 1:3].any()
    assert connected_components(found)[1] <= 2


def test_what_agrees_stays_as_it_is() -> None:
    probs = np.random.default_rng(0).dirichlet([1, 1, 1], (1, 8, 8)).transpose(0, 3, 1, 2)
    stack = np.repeat(probs, 6, axis=0).astype(np.float16)
    found = smooth_through_plane(stack)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, stack, atol=1e-3)
    np.testing.assert_allclose(found.astype(np.float32).sum(axis=1), 1.0, atol=3e-3)


def test_one_slice_has_no_neighbours() -> None:
    probs = volume_of(np.eye(8, dtype=bool)[None])
    np.testing.assert_array_equal(smooth_through_plane(probs), probs)
