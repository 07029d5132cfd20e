"""The terms of Eq. 1-6 against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sgan_core.training import losses

LOG2 = math.log(2.0)


def test_logistic_losses_are_those_of_the_paper():
    """-log D(x), -log(1 - D(x)) with D = sigmoid(logit), and the non-saturating form for G."""
    logits = torch.tensor([0.0, 2.0, -3.0])
    torch.testing.assert_close(losses.real_loss(logits, "logistic"), -torch.sigmoid(logits).log())
    torch.testing.assert_close(losses.fake_loss(logits, "logistic"), -(1 - torch.sigmoid(logits)).log())
    torch.testing.assert_close(losses.generator_loss(logits, "logistic"), -torch.sigmoid(logits).log())
    assert float(losses.real_loss(logits, "logistic")[0]) == pytest.approx(LOG2)


def test_hinge_losses():
    logits = torch.tensor([0.0, 2.0, -3.0])
    assert losses.real_loss(logits, "hinge").tolist() == [1.0, 0.0, 4.0]
    assert losses.fake_loss(logits, "hinge").tolist() == [1.0, 3.0, 0.0]
    assert losses.generator_loss(logits, "hinge").tolist() == [0.0, -2.0, 3.0]


# --- R1


def test_r1_of_a_linear_discriminator_is_the_squared_norm_of_its_weights():
    weight = torch.tensor([1.0, -2.0, 3.0])
    x = torch.randn(5, 3, requires_grad=True)
    assert float(losses.r1_penalty(x @ weight, x).detach()) == pytest.approx(14.0)


def test_r1_of_a_quadratic_discriminator_and_its_gradient():
    """D(x) = a |x|^2: the gradient is 2 a x, the penalty 4 a^2 mean |x|^2, its derivative in a is 8 a mean |x|^2."""
    a = torch.tensor(0.5, requires_grad=True)
    x = torch.tensor([[1.0, 2.0], [3.0, 0.0]], requires_grad=True)
    penalty = losses.r1_penalty(a * x.square().sum(dim=1), x)
    assert float(penalty.detach()) == pytest.approx(4 * 0.25 * (5 + 9) / 2)
    penalty.backward()
    assert float(a.grad) == pytest.approx(8 * 0.5 * (5 + 9) / 2)


def test_r1_adds_up_over_image_and_label():
    image, label = (torch.randn(2, 4, requires_grad=True) for _ in range(2))
    logits = 3.0 * image.sum(dim=1) + 2.0 * label.sum(dim=1)
    assert float(losses.r1_penalty(logits, image, label).detach()) == pytest.approx(4 * 9.0 + 4 * 4.0)


# --- path length


def _linear_generator(weight: Tensor, w_plus: Tensor) -> Tensor:
    """image (B, 1, 2, 2) = A w, with the same matrix A (4, w_dim) for each of the styles."""
    return (w_plus.sum(dim=1) @ weight.t()).reshape(len(w_plus), 1, 2, 2)


def _lengths(weight: Tensor, w_plus: Tensor, direction: Tensor) -> Tensor:
    return losses.path_lengths(_linear_generator(weight, w_plus), w_plus, direction)


def test_path_length_of_a_linear_generator():
    """J = A for each style: the length is |A^T y|, y the direction over the square root of the pixels."""
    weight = torch.randn(4, 3)
    w_plus = torch.randn(2, 5, 3, requires_grad=True)
    direction = torch.randn(2, 1, 2, 2)
    expected = (direction.reshape(2, 4) / 2.0 @ weight).norm(dim=1)
    torch.testing.assert_close(_lengths(weight, w_plus, direction), expected)


def test_path_length_does_not_depend_on_w_for_a_linear_generator_but_reaches_its_weights():
    weight = torch.randn(4, 3, requires_grad=True)
    direction = torch.randn(1, 1, 2, 2)
    first, second = torch.randn(1, 5, 3, requires_grad=True), torch.randn(1, 5, 3, requires_grad=True)
    torch.testing.assert_close(_lengths(weight, first, direction), _lengths(weight, second, direction))
    (gradient,) = torch.autograd.grad(_lengths(weight, first, direction).sum(), weight)
    y = direction.reshape(4) / 2.0
    torch.testing.assert_close(gradient, torch.outer(y, y @ weight) / (y @ weight).norm())


def test_path_length_penalty_and_running_mean():
    lengths = torch.tensor([1.0, 3.0])
    penalty, mean = losses.path_length_penalty(lengths, torch.tensor(1.0), decay=0.01)
    assert float(mean) == pytest.approx(1.01)
    assert float(penalty) == pytest.approx((0.01**2 + 1.99**2) / 2)


# --- labels


def test_soft_dice_closed_form():
    """Overlap 1, sizes 1.5 and 1: 1 - (2 * 1 + 1) / (2.5 + 1). Background does not count."""
    probs = torch.tensor([[0.0, 0.5, 1.0, 1.0], [1.0, 0.5, 0.0, 0.0]]).reshape(1, 2, 2, 2)
    hot = torch.tensor([[0.0, 1.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]).reshape(1, 2, 2, 2)
    assert float(losses.soft_dice_loss(probs, hot)) == pytest.approx(1 - 3.0 / 3.5)
    assert float(losses.soft_dice_loss(hot, hot)) == pytest.approx(0.0)


def test_soft_dice_is_the_mean_over_classes_pooled_over_the_batch():
    # Class 1: found in both slices, true in one of two; class 2: never found, never there -> 0 loss.
    probs, hot = torch.zeros(2, 3, 1, 4), torch.zeros(2, 3, 1, 4)
    probs[:, 1], probs[:, 0] = 1.0, 0.0
    hot[0, 1], hot[1, 0] = 1.0, 1.0
    assert float(losses.soft_dice_loss(probs, hot)) == pytest.approx(1 - ((2 * 4 + 1) / (12 + 1) + 1.0) / 2)


def test_soft_dice_of_empty_slices_is_nothing_to_learn_from():
    hot = torch.zeros(2, 2, 4, 4)
    hot[:, 0] = 1.0
    assert float(losses.soft_dice_loss(hot, hot)) == pytest.approx(0.0)


def test_overlap_share_of_equal_disjoint_half_and_empty_labels():
    def hot(*rows: list[int]) -> Tensor:
        return F.one_hot(torch.tensor(rows), 2).permute(0, 2, 1)[:, :, None].float()  # (B, 2, 1, 4)

    first = hot([1, 1, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0])
    second = hot([1, 1, 0, 0], [0, 0, 1, 1], [0, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0])
    assert losses.overlap_share(first, second).tolist() == [1.0, 0.0, 0.5, 1.0, 0.0]
