"""Stage 3: exact resume, the moving average, geometry, looks, pictures without the organ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from sgan_core.config import StudentTrainConfig
from sgan_core.errors import InputError
from sgan_core.looks import AppearanceConfig
from sgan_core.networks.segmenter import make_student
from sgan_core.training import evaluate
from sgan_core.training import student as student_module
from sgan_core.training.data import SliceStore
from sgan_core.training.loop import RunLog, load_checkpoint, save_checkpoint
from sgan_core.training.run import Run, _train_student
from sgan_core.training.student import (
    NEGATIVES,
    StudentTrainer,
    framed,
    frames,
    segmentation_loss,
    with_negatives,
)

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


def test_frames_are_black_edges_of_up_to_a_quarter():
    seen = frames(4000, 32, 0.5, numbers(0))[:, 0]
    assert seen[:, 8:24, 8:24].min() == 1.0
    lines = {  # each side by a line through the middle, beginning at the edge
        "top": seen[:, :, 16],
        "bottom": seen[:, :, 16].flip(1),
        "left": seen[:, 16],
        "right": seen[:, 16].flip(1),
    }
    for line in lines.values():
        wide = 32 - line.cummax(dim=1).values.sum(dim=1)
        assert wide.max() == 8
        # Half of half the pictures, evenly from none to eight pixels; a frame below half a pixel does not show.
        assert (wide > 0).float().mean().item() == pytest.approx(0.25 * 15 / 16, abs=0.02)
        assert wide[wide > 0].mean().item() == pytest.approx(
            4.27, abs=0.15
        )  # of 1 .. 7 whole and 8 half as often
    whole = (seen == 1.0).flatten(1).all(dim=1)
    assert whole.float().mean().item() == pytest.approx(1 - 0.5 * (1 - (0.5 + 0.5 / 16) ** 4), abs=0.02)
    assert frames(100, 32, 0.0, numbers(0)).min() == 1.0


def test_in_a_frame_the_picture_is_black_and_holds_no_organ():
    image = torch.rand(2, 3, 4, 4, generator=numbers(0)) * 2 - 1
    hot = torch.rand(2, 3, 4, 4, generator=numbers(1)).softmax(dim=1)
    seen = torch.ones(2, 1, 4, 4)
    seen[1, :, :, 3] = 0.0
    black, label = framed(image, hot, seen)
    torch.testing.assert_close(black[0], image[0])
    torch.testing.assert_close(label[0], hot[0])
    torch.testing.assert_close(black[1, ..., :3], image[1, ..., :3])
    assert (black[1, ..., 3] == -1.0).all()
    assert torch.equal(label[1, :, :, 3], torch.tensor([1.0, 0.0, 0.0])[:, None].expand(3, 4))


def test_the_student_is_shown_frames_after_the_looks(stage):
    """Black, whatever gamma and offset did before; no more pictures than were asked for."""
    bright = AppearanceConfig(
        fat=0, curve=0, bias=0, noise=0, blur=0, contrast=1.0, contrast_factor=(0.1, 0.1)
    )
    settings = {"strength": 0.0, "looks": bright}
    plain, trainer = stage(**settings), stage(frame_share=1.0, **settings)
    (image, label), (expected, organ) = (one._changed(*one.pairs()) for one in (trainer, plain))
    assert expected.min() > -0.5  # contrast took all black
    black = image == -1.0
    assert black.flatten(1).any(dim=1).float().mean() > 0.5
    assert (label[:, 0][black[:, 0]] == 1.0).all()
    assert torch.equal(image[~black], expected[~black])
    assert torch.equal(label[:, 1][~black[:, 0]], organ[:, 1][~black[:, 0]])


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


def test_an_adopted_student_is_replaced_only_by_a_better_one(disc_store, toy_config, tmp_path, monkeypatch):
    """It is judged on this run's own validation patients before it is taught further."""
    config = toy_config(student_train={"channels": [4, 8], "batch": 4, "max_images": 8})
    run = Run(tmp_path, CPU)
    run.checkpoints.mkdir()
    adopted = make_student(config).state_dict()
    answers = iter([0.8, 0.5, 0.5, 0.5])  # of the adopted one, then of what is taught

    class Watch:
        def __init__(self, *_):
            pass

        def __call__(self, _):
            value = next(answers)
            return {"student_dice": value, "student_shifted_dice": value}

    monkeypatch.setattr(evaluate, "StudentWatch", Watch)
    state = {
        "student": adopted,
        "of": "another",
        "images": 5,
        "quality": -1.0,
        "figures": {"student_dice": 0.1},
    }
    save_checkpoint(state, run.checkpoints / "student_best.pt")
    _train_student(run, config, disc_store(), RunLog(tmp_path), None)
    kept = load_checkpoint(run.checkpoints / "student_best.pt")
    assert (kept["of"], kept["images"], kept["quality"]) == ("another", 5, 0.8)
    assert kept["figures"]["student_dice"] == 0.8
    assert all(torch.equal(kept["student"][name], adopted[name]) for name in adopted)


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 0},
        {"max_images": 0},
        {"channels": (8,)},
        {"channels": (8, 8), "network": "nnunet"},
        {"network": "unet"},
        {"negative_share": 1.5},
        {"frame_share": -0.1},
        {"strength": float("nan")},
        {"lr": 0.0},
        {"lr": float("nan")},
    ],
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(InputError, match="student"):
        StudentTrainConfig(**settings)


# --- a size of its own, which it grows to ----------------------------------------------------------


def test_it_grows_by_its_shares_and_sees_averages(stage, monkeypatch):
    """Half of the stage at 8 px, a quarter at 16, the rest at the full 32; the network is shown that."""
    trainer = stage(growth={8: 0.5, 16: 0.25}, max_images=64)
    shown = []
    monkeypatch.setattr(
        trainer,
        "_changed",
        lambda image, hot: shown.append((image, hot)) or (image.requires_grad_(False), hot),
    )
    sizes = []
    for _ in range(8):
        sizes.append(trainer.size)
        trainer.step()
    assert sizes == [8, 8, 8, 8, 16, 16, 32, 32]
    assert [image.shape[-1] for image, _ in shown] == sizes
    whole = stage(max_images=64).pairs()  # the first batch, at full size
    torch.testing.assert_close(shown[0][0], F.avg_pool2d(whole[0], 4))
    majority = F.avg_pool2d(whole[1], 4).argmax(dim=1)
    assert torch.equal(shown[0][1].argmax(dim=1), majority)


def test_what_is_learned_while_small_holds_when_large(disc_store):
    """Growing, three quarters of the images a sixteenth as dear, it learns discs about as well."""
    found = {}
    for name, growth in (("grown", {16: 0.5}), ("whole", {})):
        config = StudentTrainConfig(
            channels=(8, 16), batch=8, max_images=1200, negative_share=0.0, growth=growth, appearance=False
        )
        trainer = StudentTrainer(config, disc_store(), CPU, labelled=2, num_classes=2, seed=0)
        while trainer.images < 1200:
            trainer.step()
        image, hot = stage_pairs(disc_store)
        with torch.no_grad():
            drawn = trainer.average(image).argmax(dim=1) > 0
        true = hot[:, 1] > 0.5
        found[name] = float(2 * (drawn & true).sum() / (drawn.sum() + true.sum()))
    assert found["grown"] > 0.9
    assert found["grown"] > found["whole"] - 0.03


def stage_pairs(disc_store):
    config = StudentTrainConfig(channels=(8, 16), batch=16, negative_share=0.0)
    return StudentTrainer(config, disc_store(), CPU, labelled=2, num_classes=2, seed=9).pairs()


def test_a_smaller_size_than_the_slices_is_taken_from_the_config(disc_store):
    config = StudentTrainConfig(channels=(4, 8), size=16, batch=4)
    trainer = StudentTrainer(config, disc_store(), CPU, labelled=2, num_classes=2, seed=0)
    assert (trainer.size, trainer.pairs()[0].shape) == (16, (4, 1, 16, 16))


def test_slices_that_cannot_be_averaged_are_our_mistake(disc_store):
    with pytest.raises(ValueError, match="32 px cannot be averaged to 24"):
        disc_store().at(24)


@pytest.mark.parametrize(
    ("able", "amp", "dtype"), [(True, True, "bfloat16"), (True, False, "float32"), (False, True, "float32")]
)
def test_bfloat16_on_a_cpu_that_has_it(stage, monkeypatch, able, amp, dtype):
    """Only there, and only the network: the loss is float32, and within 5 % of float32's."""
    from sgan_core.training import parallel

    monkeypatch.setattr(parallel, "has_bfloat16", lambda: able)
    trainer, reference = stage(), stage()
    trainer.amp, reference.amp = amp, False
    seen = []
    first = next(part for part in trainer.net.modules() if isinstance(part, torch.nn.Conv2d))
    first.register_forward_hook(lambda module, given, answer: seen.append(answer.dtype))
    loss = student_module.segmentation_loss
    monkeypatch.setattr(student_module, "segmentation_loss", lambda a, b: seen.append(a.dtype) or loss(a, b))
    losses = [(trainer.step()["loss"], reference.step()["loss"]) for _ in range(5)]
    assert seen[:2] == [getattr(torch, dtype), torch.float32]
    for found, wanted in losses:
        assert found == pytest.approx(wanted, rel=0.05 if dtype == "bfloat16" else 0.0)


def test_the_configs_looks_are_what_it_is_shown(stage):
    """Looks that only darken: no pixel of any batch is brighter than before."""
    dark = AppearanceConfig(
        fat=0.0, curve=0.0, bias=0.0, noise=0.0, blur=0.0, gamma=1.0, gamma_log=(0.5, 0.6)
    )
    trainer = stage(looks=dark, strength=0.0)
    image, hot = trainer.pairs()
    changed, _ = trainer._changed(image, hot)
    assert (changed <= image + 1e-6).all()
    assert (image - changed).mean() > 0.02
