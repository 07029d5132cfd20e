"""Stage 3: exact resume, the moving average, geometry, looks, pictures without the organ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sgan_core.config import StudentTrainConfig
from sgan_core.errors import InputError
from sgan_core.training.data import SliceStore
from sgan_core.training.loop import RunLog, load_checkpoint, save_checkpoint
from sgan_core.training.run import Run, _train_student
from sgan_core.training.student import NEGATIVES, StudentTrainer, segmentation_loss, with_negatives

CPU = torch.device("cpu")
SIZE = 32


def numbers(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def stage(disc_store: Callable[..., SliceStore]) -> Callable[..., StudentTrainer]:
    def make(**changes: Any) -> StudentTrainer:
        config = StudentTrainConfig(**({"channels": (4, 8), "batch": 8, "negative_share": 0.0} | changes))
        return StudentTrainer(config, disc_store(), CPU, labelled=2, num_classes=2, seed=3)

    return make


def test_resume_is_exact(stage, tmp_path):
    """Eight steps equal four, a checkpoint, and four of a new trainer, bit for bit."""
    whole, first, second = (stage(negative_share=0.5) for _ in range(3))
    losses = [whole.step() for _ in range(8)]
    for _ in range(4):
        first.step()
    save_checkpoint(first.state_dict(), tmp_path / "student.pt")
    second.load_state_dict(load_checkpoint(tmp_path / "student.pt"))
    assert [second.step() for _ in range(4)] == losses[4:]
    for one, other in ((whole.net, second.net), (whole.average, second.average)):
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())


def test_negatives_have_empty_labels_and_the_asked_share():
    image, label = torch.full((2000, 1, 16, 16), 0.3), torch.ones(2000, 16, 16, dtype=torch.long)
    changed, target = with_negatives(image, label, 0.2, numbers)
    replaced = (target == 0).flatten(1).all(dim=1)
    assert replaced.float().mean().item() == pytest.approx(0.2, abs=0.03)
    assert torch.equal(changed[~replaced], image[~replaced])
    assert torch.equal(target[~replaced], label[~replaced])
    differs = (changed != image).flatten(1).any(dim=1)
    assert torch.equal(differs, replaced)
    assert (image == 0.3).all()  # the caller's own are kept
    assert (label == 1).all()


def test_no_negatives_when_none_are_asked_for():
    image, label = torch.rand(8, 1, 16, 16), torch.ones(8, 16, 16, dtype=torch.long)
    assert torch.equal(with_negatives(image, label, 0.0, numbers)[0], image)


@pytest.mark.parametrize("kind", NEGATIVES)
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64), (1, 16, 24)])
def test_every_kind_of_negative_is_a_picture_of_its_own(kind, shape):
    image = torch.rand(shape, generator=numbers(0)) * 2 - 1
    first, again, other = (kind(image, numbers(seed)) for seed in (1, 1, 2))
    assert (first.shape, first.dtype) == (image.shape, image.dtype)
    assert first.abs().max() <= 1.0
    assert first.std() > 0.05
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_batch_of_negatives_alone_teaches_silence(stage):
    """The student that is shown nothing else calls everything background."""
    trainer = stage(negative_share=1.0)
    _, hot = trainer.pairs()
    assert torch.equal(hot[:, 0], torch.ones(8, SIZE, SIZE))
    for _ in range(60):
        trainer.step()
    image, _ = stage().pairs()
    with torch.no_grad():
        assert (trainer.net.eval()(image).argmax(dim=1) > 0).float().mean() < 0.03


def test_the_average_follows_the_weights(stage):
    """mean += (1 - 0.5 ** (batch / half-life)) (weights - mean); here 8 images a step, a half-life of 16."""
    trainer = stage(ema_half_life_images=16.0)
    for _ in range(30):
        trainer.step()
    before = [value.clone() for value in trainer.average.parameters()]
    trainer.step()
    for old, new, mean in zip(before, trainer.net.parameters(), trainer.average.parameters(), strict=True):
        torch.testing.assert_close(mean, old + (1 - 0.5**0.5) * (new - old))


@pytest.mark.parametrize(("steps", "half_life"), [(1, 0.8), (10, 8.0), (50, 16.0)])
def test_half_life_of_the_average_grows_with_the_images_seen(stage, steps, half_life):
    """A tenth of the images seen, up to the stated one."""
    trainer = stage(ema_half_life_images=16.0)
    trainer.step_number = steps
    for mean, new in zip(trainer.average.parameters(), trainer.net.parameters(), strict=True):
        mean.zero_()
        new.data.fill_(1.0)
    trainer._update_average()
    for mean in trainer.average.parameters():
        torch.testing.assert_close(mean, torch.full_like(mean, 1 - 0.5 ** (8 / half_life)))


def test_image_and_label_move_together(stage):
    """The organ's brightness under the moved label stays that of the organ."""
    trainer = stage(appearance=False, strength=1.0)
    image, hot = trainer._changed(*trainer.pairs())
    inside = (hot[:, 1:] > 0.99).float()
    shrunk = 1.0 - F.max_pool2d(1.0 - inside, 5, stride=1, padding=2)  # away from the soft edge
    assert shrunk.sum() > 50
    assert (image * shrunk).sum() / shrunk.sum() > 0.7
    assert torch.allclose(hot.sum(dim=1), torch.ones(len(hot), SIZE, SIZE), atol=1e-5)


def test_appearance_changes_looks_and_no_labels(stage):
    plain, shifted = stage(appearance=False), stage(appearance=True)
    (image, hot), (other, label) = (trainer._changed(*trainer.pairs()) for trainer in (plain, shifted))
    assert torch.equal(hot, label)
    assert (image - other).abs().mean() > 0.1


def test_loss_is_small_only_for_the_right_label():
    hot = torch.zeros(1, 2, 8, 8)
    hot[:, 0], hot[:, 1, 2:5, 2:5], hot[:, 0, 2:5, 2:5] = 1.0, 1.0, 0.0
    right = segmentation_loss(hot * 40.0 - 20.0, hot)
    assert right < 1e-3
    assert segmentation_loss(hot.flip(1) * 40.0 - 20.0, hot) > 10.0


def test_the_stage_needs_no_generator(disc_store, toy_config, tmp_path):
    config = toy_config(student_train={"channels": [4, 8], "batch": 4, "max_images": 8})
    run = Run(tmp_path, CPU)
    run.checkpoints.mkdir()
    _train_student(run, config, disc_store(), RunLog(tmp_path), None)
    assert sorted(file.name for file in run.checkpoints.iterdir()) == ["student.pt", "student_best.pt"]
    again = StudentTrainer(config.student_train, disc_store(), CPU, labelled=2, num_classes=2, seed=3)
    again.load_state_dict(load_checkpoint(run.checkpoints / "student.pt"))
    assert again.images == 8


@pytest.mark.parametrize(
    "settings", [{"batch": 0}, {"max_images": 0}, {"channels": (8,)}, {"negative_share": 1.5}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="student"):
        StudentTrainConfig(**settings)
