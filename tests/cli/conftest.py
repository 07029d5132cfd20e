"""A small untrained model, scans and a cohort of discs, written to disk for the commands."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from sgan_core.bundle import load_bundle, save_bundle, save_with_facts
from sgan_core.cohort import Case, Cohort, Intensity, Label, rank_labelled, save_cohort
from sgan_core.config import EncoderConfig, ImageDiscriminatorConfig, InversionConfig, preset
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import make_perceptual
from sgan_core.networks.segmenter import make_student
from sgan_core.terms import Source

DISCS = Source("discs", "free", "https://example.org/discs", "nobody, 2026")
CHANNELS = {4: 8, 8: 8, 16: 8, 32: 8}


_THREADS = torch.get_num_threads()


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Networks this small only wait for each other's threads; the commands started here know it too."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        yield
    torch.set_num_threads(_THREADS)


@pytest.fixture
def all_threads() -> Iterator[None]:
    """For a model of real size."""
    torch.set_num_threads(_THREADS)
    yield
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of 32 px with random weights: CT in HU, one label, 4 steps of inversion."""
    config = preset("tiny", modality="ct", num_classes=2, size=32)
    config = dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, channels=CHANNELS, w_dim=8, z_dim=8),
        image_discriminator=ImageDiscriminatorConfig(channels=CHANNELS),
        encoder=EncoderConfig("resnet18", 8, 8, "light", "group", stem_stride=False),
        inversion=InversionConfig(steps=4),
        perceptual="discriminator",
        labels=(Label(1, "liver", (200, 90, 60), "10200004"),),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(config.generator)
        generator.update_mean_w(64)
        judge = ImageDiscriminator(config.image_discriminator, image_channels=1)
        encoder = Encoder(config.encoder, size=32, image_channels=1, num_ws=config.generator.num_ws, w_dim=8)
    return save_bundle(
        tmp_path_factory.mktemp("models") / "bundle",
        name="tiny-ct-liver",
        config=config,
        generator=generator,
        encoder=encoder,
        perceptual=make_perceptual("discriminator", image_discriminator=judge),
        facts={"cohort": "noise", "gan_images": 0, "validation_rmse_p95": 1.0},
    )


@pytest.fixture(scope="session")
def student_bundle(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as a student alone."""
    config = load_bundle(tiny_bundle).config
    config = dataclasses.replace(
        config, student_train=dataclasses.replace(config.student_train, channels=(4, 8))
    )
    return save_bundle(
        tmp_path_factory.mktemp("models") / "bundle",
        name="tiny-student",
        config=config,
        student=make_student(config),
        facts={"cohort": "noise", "student_dice": 0.95},
    )


@pytest.fixture(scope="session")
def restricted_bundle(student_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The student alone, for research only."""
    use = {"restriction": "research only, not for commercial use", "sources": [dataclasses.asdict(DISCS)]}
    bundle = load_bundle(student_bundle)
    folder = tmp_path_factory.mktemp("models") / "bundle"
    return save_with_facts(folder, bundle, bundle.facts | {"licence": "CC BY-NC-SA 4.0", "use": use})


def _oblique() -> np.ndarray:
    """Axes turned by about 10 degrees, patient's left first, 2 x 2.2 x 5 mm."""
    turn, tilt = 0.2, -0.15
    turned = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    tilted = np.array([[1, 0, 0], [0, np.cos(tilt), -np.sin(tilt)], [0, np.sin(tilt), np.cos(tilt)]])
    return nib.affines.from_matvec(turned @ tilted @ np.diag([-2.0, 2.2, 5.0]), [60.0, -35.0, 12.5])


OBLIQUE = _oblique()


@pytest.fixture
def write_scan() -> Callable[..., Path]:
    """Write a CT of a bright ellipsoid in air: odd sizes, oblique affine, int16 HU."""

    def write(
        path: Path,
        *,
        shape: tuple[int, ...] = (23, 17, 5),
        affine: np.ndarray = OBLIQUE,
        change: Callable[[np.ndarray], np.ndarray] = lambda array: array,
        seed: int = 0,
    ) -> Path:
        places = np.meshgrid(*(np.linspace(-1, 1, max(size, 2))[:size] for size in shape), indexing="ij")
        inside = sum(place**2 for place in places) < 0.8
        noise = np.random.default_rng(seed).normal(0, 20, shape)
        array = change(np.where(inside, 60, -1000) + noise).astype(np.float32)
        dtype = np.int16 if np.isfinite(array).all() else np.float32
        nib.save(nib.Nifti1Image(array.astype(dtype), affine), path)
        return path

    return write


@pytest.fixture(scope="session")
def toy_settings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """YAML for ``sgan-train --config``: networks a few channels wide, steps of a few images."""
    settings: dict[str, Any] = {
        "generator": {"size": 32, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channels": CHANNELS},
        "image_discriminator": {"channels": CHANNELS, "std_group": 2},
        "pair_discriminator": {"layers": 2, "base_channels": 8},
        "encoder": {"width": 8, "fpn_channels": 8, "stem_stride": False},
        "gan": {"batch": 4, "max_images": 48},
        "encoder_train": {"batch": 4, "max_images": 24},
        "student_train": {"batch": 4, "max_images": 24, "channels": [4, 8]},
        "inversion": {"steps": 4},
        "perceptual": "discriminator",
        "preset": "tiny",
    }
    file = tmp_path_factory.mktemp("settings") / "toy.yaml"
    file.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def disc_cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder: six patients of four 32 px slices with a disc in noise, three labelled."""
    folder = tmp_path_factory.mktemp("discs")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:32, :32]
    cases = []
    for patient in range(6):
        for number in range(4):
            row, column, radius = random.uniform(10, 22, 2).tolist() + [random.uniform(4, 8)]
            disc = (rows - row) ** 2 + (columns - column) ** 2 < radius**2
            image = np.where(disc, 190, 60) + random.normal(0, 12, disc.shape)
            name = f"p{patient}_{number}"
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / f"{name}.png")
            label = None
            if patient < 3:
                label = str(folder / f"{name}_label.png")
                Image.fromarray(disc.astype(np.uint8)).save(label)
            split = "validation" if patient == 2 else "train"
            cases.append(Case(name, f"p{patient}", str(folder / f"{name}.png"), label, split=split))
    labels = (Label(1, "disc", (200, 90, 60)),)
    cohort = Cohort(
        "discs", "ct", Intensity(-160.0, 240.0, "HU"), labels, rank_labelled(cases), sources=(DISCS,)
    )
    save_cohort(cohort, folder)
    return folder


def _leftovers(folder: Path) -> list[str]:
    names = (path.name for path in folder.rglob("*") if path.is_file())
    return [name for name in names if name.startswith(".") or "part" in name]


@pytest.fixture
def leftovers() -> Callable[[Path], list[str]]:
    """Names of half-written files in a folder, at any depth."""
    return _leftovers
