"""Stage 3: generated pairs come slowly and only when believed, exact resume, the moving average, looks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.config import StudentTrainConfig
from sgan_core.errors import InputError
from sgan_core.networks.generator import Generator, Pair
from sgan_core.training.data import SliceStore
from sgan_core.training.loop import load_checkpoint, save_checkpoint
from sgan_core.training.student import StudentTrainer, segmentation_loss

CPU = torch.device("cpu")
SIZE = 32


class Squares(nn.Module):
    """Stands for a generator: bright squares in the corner that z chooses, with the label asked for."""

    def __init__(self, *, honest: bool) -> None:
        super().__init__()
        self.honest = honest
        self.config = type("Config", (), {"z_dim": 4})

    def forward(self, z: Tensor) -> Pair:
        mask = torch.zeros(len(z), 1, SIZE, SIZE)
        for one, place in zip(mask, z.argmax(dim=1).tolist(), strict=True):
            row, column = divmod(place, 2)
            one[:, 4 + 14 * row : 14 + 14 * row, 4 + 14 * column : 14 + 14 * column] = 1.0
        label = mask if self.honest else mask.flip(2)
        return Pair(mask * 1.6 - 0.8, torch.cat([-label, label], dim=1) * 9.0)


class Threshold(nn.Module):
    """A student that calls everything bright the organ."""

    def forward(self, image: Tensor) -> Tensor:
        return torch.cat([-image, image], dim=1) * 9.0


@pytest.fixture
def stage(disc_store: Callable[..., SliceStore]) -> Callable[..., StudentTrainer]:
    def make(generator: Any = None, **changes: Any) -> StudentTrainer:
        config = StudentTrainConfig(**({"channels": (4, 8), "batch": 8, "ramp_images": 80} | changes))
        return StudentTrainer(config, disc_store(), CPU, generator, labelled=2, num_classes=2, seed=3)

    return make


def test_resume_is_exact(stage, toy_config, tmp_path):
    """Eight steps equal four, a checkpoint, and four of a new trainer, bit for bit."""
    torch.manual_seed(5)
    generator = Generator(toy_config().generator)
    whole, first, second = (stage(generator, agreement=0.0, ramp_images=1) for _ in range(3))
    losses = [whole.step() for _ in range(8)]
    for _ in range(4):
        first.step()
    save_checkpoint(first.state_dict(), tmp_path / "student.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "student.pt"))
    assert [second.step() for _ in range(4)] == losses[4:]
    for one, other in ((whole.net, second.net), (whole.average, second.average)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_generated_pairs_come_slowly(stage):
    trainer = stage(Squares(honest=True), generated_share=0.5)
    trainer.average = Threshold()
    trainer._update_average = lambda: None
    shares = [trainer.step()["generated"] for _ in range(14)]
    assert shares[0] == 0.0
    assert shares[5] == 0.25  # 40 of 80 images into the ramp: half of the half
    assert shares[-1] == 0.5


def test_pairs_that_the_student_does_not_believe_are_left_out(stage):
    for honest, share in ((True, 0.5), (False, 0.0)):
        trainer = stage(Squares(honest=honest), generated_share=0.5, ramp_images=1)
        trainer.average = Threshold()
        trainer._update_average = lambda: None
        trainer.step()
        assert trainer.step()["generated"] == share


def test_the_generator_stays_frozen(stage, toy_config):
    generator = Generator(toy_config().generator)
    before = {name: value.clone() for name, value in generator.state_dict().items()}
    trainer = stage(generator, agreement=0.0, ramp_images=1)
    for _ in range(3):
        trainer.step()
    assert all(torch.equal(value, before[name]) for name, value in generator.state_dict().items())


def test_the_average_follows_the_weights(stage):
    """mean += (1 - 0.5 ** (batch / half-life)) (weights - mean); here 8 images a step, a half-life of 16."""
    trainer = stage(ema_half_life_images=16.0)
    for _ in range(30):
        trainer.step()
    before = [value.clone() for value in trainer.average.parameters()]
    trainer.step()
    for old, new, mean in zip(before, trainer.net.parameters(), trainer.average.parameters(), strict=True):
        torch.testing.assert_close(mean, old + (1 - 0.5**0.5) * (new - old))


def test_image_and_label_move_together(stage):
    """The organ's brightness under the moved label stays that of the organ."""
    trainer = stage(appearance=False, strength=1.0)
    image, hot = trainer._changed(*trainer._real())
    inside = (hot[:, 1:] > 0.99).float()
    shrunk = 1.0 - F.max_pool2d(1.0 - inside, 5, stride=1, padding=2)  # away from the soft edge
    assert shrunk.sum() > 50
    assert (image * shrunk).sum() / shrunk.sum() > 0.7
    assert torch.allclose(hot.sum(dim=1), torch.ones(len(hot), SIZE, SIZE), atol=1e-5)


def test_appearance_changes_looks_and_no_labels(stage):
    plain, shifted = stage(appearance=False), stage(appearance=True)
    (image, hot), (other, label) = (trainer._changed(*trainer._real()) for trainer in (plain, shifted))
    assert torch.equal(hot, label)
    assert (image - other).abs().mean() > 0.1


def test_loss_is_small_only_for_the_right_label():
    hot = torch.zeros(1, 2, 8, 8)
    hot[:, 0], hot[:, 1, 2:5, 2:5], hot[:, 0, 2:5, 2:5] = 1.0, 1.0, 0.0
    right = segmentation_loss(hot * 40.0 - 20.0, hot)
    assert right < 1e-3
    assert segmentation_loss(hot.flip(1) * 40.0 - 20.0, hot) > 10.0


@pytest.mark.parametrize("settings", [{"batch": 0}, {"max_images": 0}, {"channels": (8,)}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="student"):
        StudentTrainConfig(**settings)
