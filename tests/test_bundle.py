"""Bundles: what is written is read back, and nothing that is broken or unsafe is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch

import sgan_core
from sgan_core import bundle as bundles
from sgan_core import known_models
from sgan_core.bundle import (
    Bundle,
    describe,
    load_bundle,
    save_bundle,
    verify_bundle,
)
from sgan_core.cohort import Label
from sgan_core.config import EncoderConfig, ImageDiscriminatorConfig, TrainConfig, preset
from sgan_core.curvature import Curvature, measure_curvature
from sgan_core.errors import InputError
from sgan_core.known_models import find_bundle
from sgan_core.monai_inference import SemanticGANSegmenter, SliceInferer
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import Perceptual, make_perceptual
from sgan_core.networks.segmenter import make_student

LIVER = Label(1, "liver", (200, 90, 60), "10200004")
FACTS = {"cohort": "phantom", "labelled_patients": 8, "gan_images": 1234, "licence": "Apache-2.0"}


def tiny(**changes: Any) -> TrainConfig:
    """A CT model of 32 px; ``discriminator`` needs no weights from elsewhere."""
    config = preset("tiny", modality="ct", num_classes=2, size=32)
    channels = {4: 16, 8: 16, 16: 8, 32: 8}
    return dataclasses.replace(
        config,
        generator=dataclasses.replace(config.generator, channels=channels, w_dim=16, z_dim=16),
        image_discriminator=ImageDiscriminatorConfig(channels=channels),
        encoder=EncoderConfig("resnet18", 8, 16, "light", "group", stem_stride=False, from_mean_w=True),
        perceptual="discriminator",
        labels=(LIVER,),
        **changes,
    )


def networks(config: TrainConfig, *, grown: bool = False) -> dict[str, Any]:
    """Untrained networks of a config, as ``save_bundle`` takes them."""
    torch.manual_seed(1)
    of = config.generator
    judge = ImageDiscriminator(config.image_discriminator, image_channels=of.image_channels, grown=grown)
    generator = Generator(of)
    generator.update_mean_w(64)
    encoder = Encoder(
        config.encoder, size=of.size, image_channels=of.image_channels, num_ws=of.num_ws, w_dim=of.w_dim
    )
    perceptual = make_perceptual(config.perceptual, image_discriminator=judge)
    return {"generator": generator, "encoder": encoder, "perceptual": perceptual}


def save(
    folder: Path, config: TrainConfig | None = None, *, facts: dict[str, Any] | None = None, **more: Any
) -> Path:
    config = config or tiny()
    parts = networks(config) | more
    return save_bundle(folder, name="liver", config=config, facts=FACTS if facts is None else facts, **parts)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return save(tmp_path_factory.mktemp("models") / "bundle")


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    """A bundle to damage."""
    return Path(shutil.copytree(saved, tmp_path / "copy"))


def edit(folder: Path, path: str, **changes: Any) -> None:
    """Change a JSON file of a bundle and put its new hash into the manifest."""
    content = json.loads((folder / path).read_text())
    (folder / path).write_text(json.dumps(content | changes))
    rehash(folder, path)


def rehash(folder: Path, path: str) -> None:
    manifest = json.loads((folder / bundles.MANIFEST).read_text())
    manifest["files"][path] = hashlib.sha256((folder / path).read_bytes()).hexdigest()
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest))


# --- round trip ------------------------------------------------------------------------------------


def test_config_and_facts_come_back(saved: Path) -> None:
    loaded = load_bundle(saved)
    assert (loaded.name, loaded.config, loaded.folder) == ("liver", tiny(), saved)
    assert loaded.facts == {"tool_version": sgan_core.__version__, **FACTS, "seed": 0}


def outputs(generator: Generator, encoder: Encoder, perceptual: Perceptual) -> list[torch.Tensor]:
    image = torch.linspace(-1, 1, 2 * 32 * 32).reshape(2, 1, 32, 32)
    with torch.no_grad():
        w_plus = encoder(image)
        pair = generator.synthesis(w_plus)
        return [w_plus, pair.image, pair.label_logits, perceptual(pair.image, image)]


@pytest.mark.parametrize(("half", "tolerance"), [(False, 0.0), (True, 1e-2)])
def test_networks_come_back(tmp_path: Path, half: bool, tolerance: float) -> None:
    parts = networks(tiny())
    loaded = load_bundle(save(tmp_path / "bundle", half=half, **parts))
    for network in parts.values():
        network.eval()
    expected = outputs(**parts)
    for value, wanted in zip(
        outputs(loaded.generator, loaded.encoder, loaded.perceptual), expected, strict=True
    ):
        torch.testing.assert_close(value, wanted, rtol=tolerance, atol=tolerance)


def test_student_and_curvature_come_back_where_there_are_some(saved: Path, tmp_path: Path) -> None:
    plain = load_bundle(saved)
    assert (plain.student, plain.curvature) == (None, None)
    config = tiny()
    parts = networks(config)
    curvature = measure_curvature(
        parts["generator"].eval(), parts["perceptual"], mse_weight=0.1, samples=64, seed=0
    )
    student = make_student(config)
    loaded = load_bundle(save(tmp_path / "bundle", config, student=student, curvature=curvature, **parts))
    vector = torch.randn(2, config.generator.num_ws, 16)
    assert loaded.curvature is not None
    assert loaded.curvature.values.count_nonzero() == 64
    torch.testing.assert_close(loaded.curvature(vector), curvature(vector), atol=2e-2, rtol=0.0)
    for found, written in zip(loaded.student.parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(found, written, atol=1e-3, rtol=1e-3)


def test_loaded_networks_are_frozen_float32_in_evaluation_mode(saved: Path) -> None:
    loaded = load_bundle(saved)
    assert loaded.device == torch.device("cpu")
    for network in (loaded.generator, loaded.encoder, loaded.perceptual):
        assert not network.training
        assert {(p.dtype, p.requires_grad) for p in network.parameters()} == {(torch.float32, False)}


def test_numbers_beyond_half_precision_keep_single_precision(tmp_path: Path) -> None:
    parts = networks(tiny())
    parts["generator"].mean_w.fill_(1e6)
    assert load_bundle(save(tmp_path / "bundle", **parts)).generator.mean_w.max() == 1e6


def test_perceptual_term_of_a_grown_discriminator_comes_back(tmp_path: Path) -> None:
    parts = networks(tiny(), grown=True)
    loaded = load_bundle(save(tmp_path / "bundle", half=False, **parts))
    image = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    torch.testing.assert_close(loaded.perceptual(image, -image), parts["perceptual"](image, -image))


def test_loading_leaves_the_random_numbers_of_the_caller(saved: Path) -> None:
    torch.manual_seed(3)
    expected = torch.randn(4)
    torch.manual_seed(3)
    load_bundle(saved)
    torch.testing.assert_close(torch.randn(4), expected)


def test_same_model_has_the_same_hash(saved: Path, tmp_path: Path) -> None:
    again = save(tmp_path / "again")
    assert describe(again)["hash"] == describe(saved)["hash"]
    other = save(tmp_path / "other", facts={"cohort": "another"})
    assert describe(other)["hash"] != describe(saved)["hash"]


def test_figures_that_were_not_measured_are_left_out(tmp_path: Path) -> None:
    facts = {"validation_dice": float("nan"), "gan_figures": {"frechet": float("inf"), "kid": 1.0}}
    loaded = load_bundle(save(tmp_path / "bundle", facts=facts))
    assert "validation_dice" not in loaded.facts
    assert loaded.facts["gan_figures"] == {"kid": 1.0}


def test_tiny_preset_with_its_perceptual_term_fits_into_12_megabytes(tmp_path: Path) -> None:
    config = preset("tiny", modality="ct", num_classes=2)
    folder = save(tmp_path / "bundle", config)
    assert sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) <= 12e6
    image = torch.linspace(-1, 1, 64 * 64).reshape(1, 1, 64, 64)
    assert load_bundle(folder).perceptual(image, -image) > 0


# --- a student alone -------------------------------------------------------------------------------


def save_student(folder: Path, **facts: Any) -> Path:
    student = make_student(tiny())
    return save_bundle(folder, name="liver", config=tiny(), student=student, facts=FACTS | facts)


def test_a_student_alone_comes_back_and_says_what_it_cannot(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "bundle")
    assert verify_bundle(folder) == []
    assert sorted(path.name for path in (folder / "models").iterdir()) == ["student.safetensors"]
    loaded = load_bundle(folder)
    assert loaded.inverter is None
    image = torch.linspace(-1, 1, 32 * 32).reshape(1, 1, 32, 32)
    expected = make_student(tiny()).eval()(image)
    torch.testing.assert_close(loaded.student(image), expected, atol=1e-2, rtol=1e-2)
    torch.testing.assert_close(SemanticGANSegmenter(folder, "cpu")(image), expected, atol=1e-2, rtol=1e-2)
    for name in ("generator", "encoder", "perceptual", "curvature"):
        with pytest.raises(InputError, match="liver: this model is a student alone.*sgan-train --resume"):
            getattr(loaded, name)
    assert describe(folder)["can"].startswith("segments; cannot reconstruct, cannot judge")
    for text in ((folder / "docs" / "README.md").read_text(), read_metadata(folder)["description"]):
        assert "cannot judge its masks" in " ".join(text.replace("nor judge", "cannot judge").split())
        assert "latent" not in text


def test_a_student_alone_grows_into_a_whole_model(tmp_path: Path) -> None:
    before = describe(save_student(tmp_path / "bundle"))
    after = describe(save(tmp_path / "bundle", student=make_student(tiny())))
    assert after["hash"] != before["hash"]
    assert after["can"] == "segments, reconstructs; cannot judge its masks"
    assert verify_bundle(tmp_path / "bundle") == []


def remove(folder: Path, *paths: str) -> None:
    """Take files out of a bundle and its list."""
    manifest = json.loads((folder / bundles.MANIFEST).read_text())
    for path in paths:
        (folder / path).unlink()
        del manifest["files"][path]
    (folder / bundles.MANIFEST).write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("gone", "missing"),
    [
        ((bundles.ENCODER,), "encoder"),
        ((bundles.GENERATOR,), "generator"),
        ((bundles.GENERATOR, bundles.ENCODER), "encoder"),
        ((bundles.GENERATOR, bundles.ENCODER, bundles.PERCEPTUAL), "encoder"),  # the curvature is left
    ],
)
def test_half_a_generator_is_refused_as_damaged(tmp_path: Path, gone: tuple[str, ...], missing: str) -> None:
    config = tiny()
    curvature = Curvature(config.generator.num_ws, config.generator.w_dim)
    folder = save(tmp_path / "bundle", config, student=make_student(config), curvature=curvature)
    remove(folder, *gone)
    with pytest.raises(InputError, match=rf"{missing}\.safetensors: missing"):
        load_bundle(folder)
    assert len(verify_bundle(folder)) == len(gone)


def test_without_any_network_there_is_no_model(tmp_path: Path) -> None:
    folder = save_student(tmp_path / "bundle")
    remove(folder, bundles.STUDENT)
    with pytest.raises(InputError, match=r"encoder\.safetensors: missing"):
        load_bundle(folder)


def test_half_a_generator_is_not_written(tmp_path: Path) -> None:
    parts = networks(tiny())
    for left_out in parts:
        with pytest.raises(ValueError, match=f"needs models/{left_out}"):
            save(tmp_path / "bundle", **{left_out: None})
    with pytest.raises(ValueError, match="nothing needs"):
        save(tmp_path / "bundle", **dict.fromkeys(parts))
    assert not (tmp_path / "bundle").exists()


# --- writing ---------------------------------------------------------------------------------------


def test_newer_bundle_takes_the_place_of_an_older_one(tmp_path: Path) -> None:
    folder = save(tmp_path / "bundle", facts={"gan_images": 1})
    (folder / "models" / "of_the_old_one.txt").touch()
    save(folder, facts={"gan_images": 2})
    assert load_bundle(folder).facts["gan_images"] == 2
    assert verify_bundle(folder) == []
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_old_bundle_stays_when_the_new_one_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "bundle", facts={"gan_images": 1})

    def full(path: Path, content: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space"):
        save(folder, facts={"gan_images": 2})
    assert load_bundle(folder).facts["gan_images"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_old_bundle_comes_back_when_the_new_one_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "bundle", facts={"gan_images": 1})
    rename = Path.rename

    def held(path: Path, target: Path) -> Path:
        if path.name.endswith(".partial"):
            raise PermissionError(13, "a file is open")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", held)
    with pytest.raises(PermissionError):
        save(folder, facts={"gan_images": 2})
    assert load_bundle(folder).facts["gan_images"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_folder_with_other_files_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="not a model"):
        save(tmp_path)
    assert (tmp_path / "thesis.txt").exists()


def test_failed_training_is_not_written(tmp_path: Path) -> None:
    parts = networks(tiny())
    parts["generator"].mean_w.fill_(float("nan"))
    with pytest.raises(InputError, match=r"generator\.safetensors: weights are NaN"):
        save(tmp_path / "bundle", **parts)
    assert not list(tmp_path.iterdir())


# --- damage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", ["generator", "encoder", "perceptual"])
def test_damaged_weights_are_refused_by_name(copied: Path, network: str) -> None:
    file = copied / "models" / f"{network}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{network}\.safetensors: damaged or changed"):
        load_bundle(copied)
    assert len(verify_bundle(copied)) == 1


@pytest.mark.parametrize("path", [bundles.GENERATOR, bundles.ENCODER, bundles.PERCEPTUAL, bundles.MANIFEST])
def test_missing_file_is_named(copied: Path, path: str) -> None:
    (copied / path).unlink()
    with pytest.raises(InputError, match=f"{Path(path).name}: missing"):
        load_bundle(copied)
    assert len(verify_bundle(copied)) == 1


def test_weights_that_the_manifest_does_not_list_are_refused(copied: Path) -> None:
    manifest = json.loads((copied / bundles.MANIFEST).read_text())
    del manifest["files"][bundles.ENCODER]
    (copied / bundles.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=r"encoder\.safetensors: not in the model's list"):
        load_bundle(copied)


@pytest.mark.parametrize("path", [bundles.SETTINGS, bundles.MANIFEST])
def test_unknown_schema_asks_for_an_update(copied: Path, path: str) -> None:
    edit(copied, bundles.SETTINGS, schema=2)
    if path == bundles.MANIFEST:
        manifest = json.loads((copied / path).read_text())
        (copied / path).write_text(json.dumps(manifest | {"schema": 2}))
    with pytest.raises(InputError, match=rf"{Path(path).name}: schema version 2.*Update semanticgan"):
        load_bundle(copied)


def test_unknown_setting_is_refused(copied: Path) -> None:
    edit(copied, bundles.SETTINGS, config={"colour_of_the_sky": "blue"})
    with pytest.raises(InputError, match="colour_of_the_sky"):
        load_bundle(copied)


@pytest.mark.parametrize(
    "content", [b"\xff\xfe", b"[1, 2]", b'{"schema": 1}', b'{"schema": 1, "files": [3]}']
)
def test_broken_manifest_is_refused(copied: Path, content: bytes) -> None:
    (copied / bundles.MANIFEST).write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json"):
        load_bundle(copied)


def test_weights_of_another_architecture_are_refused(copied: Path) -> None:
    shutil.copy(copied / bundles.ENCODER, copied / bundles.GENERATOR)
    rehash(copied, bundles.GENERATOR)
    with pytest.raises(InputError, match=r"generator\.safetensors: does not fit"):
        load_bundle(copied)
    assert verify_bundle(copied)


@pytest.mark.parametrize("path", ["../outside.txt", "/etc/hostname", "C:/secret", "models\\..\\..\\x"])
def test_manifest_that_leads_out_is_refused(copied: Path, path: str) -> None:
    manifest = json.loads((copied / bundles.MANIFEST).read_text())
    manifest["files"][path] = "0" * 64
    (copied / bundles.MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="leads out"):
        load_bundle(copied)


def test_sound_bundle_verifies(saved: Path) -> None:
    assert verify_bundle(saved) == []


def test_verify_finds_a_changed_inference_config_and_an_added_file(copied: Path) -> None:
    (copied / bundles.INFERENCE).write_text("{}")
    (copied / "configs" / "logging.conf").touch()
    (copied / "eval").mkdir()
    (copied / "eval" / "result.txt").touch()  # where MONAI writes results by default
    problems = " ".join(verify_bundle(copied))
    assert "inference.json: damaged or changed" in problems
    assert "logging.conf: does not belong" in problems
    assert "result.txt" not in problems


# --- finding ---------------------------------------------------------------------------------------


def zipped(folder: Path, file: Path, prefix: str = "") -> Path:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in folder.rglob("*"):
            archive.write(path, prefix + path.relative_to(folder).as_posix())
    return file


@pytest.mark.parametrize("prefix", ["", "liver/"])
def test_zip_of_a_bundle_is_a_bundle(saved: Path, tmp_path: Path, prefix: str) -> None:
    archive = zipped(saved, tmp_path / "liver.zip", prefix)
    assert load_bundle(archive).hash == load_bundle(saved).hash
    assert find_bundle(archive) == find_bundle(archive)  # unpacked once
    assert verify_bundle(find_bundle(archive)) == []


@pytest.mark.parametrize(
    "name",
    ["../evil.txt", "/evil.txt", "models/../../evil.txt", "C:\\evil.txt", "..\\evil.txt", "C:evil.txt"],
)
def test_zip_that_leads_out_is_refused(saved: Path, tmp_path: Path, name: str) -> None:
    archive = zipped(saved, tmp_path / "evil.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, "evil")
    with pytest.raises(InputError, match="leads out"):
        find_bundle(archive)
    assert not list(tmp_path.parent.rglob("evil.txt"))


def test_zip_with_a_link_is_refused(saved: Path, tmp_path: Path) -> None:
    archive = zipped(saved, tmp_path / "link.zip")
    link = zipfile.ZipInfo("models/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(link, "/etc/passwd")
    with pytest.raises(InputError, match="is a link"):
        find_bundle(archive)


def test_zip_that_is_too_big_is_refused(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known_models, "_ZIP_BYTES", 1000)
    monkeypatch.setattr(known_models, "_unpacked_by_hash", {})  # another test unpacked the same content
    with pytest.raises(InputError, match="too big"):
        find_bundle(zipped(saved, tmp_path / "big.zip"))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_zip_with_a_file_twice_is_refused(saved: Path, tmp_path: Path) -> None:
    archive = zipped(saved, tmp_path / "twice.zip")
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(bundles.MANIFEST.upper(), "{}")
    with pytest.raises(InputError, match="same name"):
        find_bundle(archive)


def test_damaged_zip_is_refused(saved: Path, tmp_path: Path) -> None:
    archive = zipped(saved, tmp_path / "damaged.zip")
    content = bytearray(archive.read_bytes())
    content[200:20_000] = bytes(19_800)
    archive.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged\.zip: damaged"):
        find_bundle(archive)


def test_zip_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "holiday").mkdir()
    (tmp_path / "holiday" / "photo.txt").write_text("sea")
    with pytest.raises(InputError, match=r"semanticgan\.json is missing"):
        find_bundle(zipped(tmp_path / "holiday", tmp_path / "holiday.zip"))


def test_training_folder_hints_at_its_bundle(saved: Path, tmp_path: Path) -> None:
    shutil.copytree(saved, tmp_path / "run" / "bundle")
    with pytest.raises(InputError, match="Did you mean .*bundle"):
        find_bundle(tmp_path / "run")


def test_other_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="neither a model folder nor a .zip"):
        find_bundle(tmp_path / "model.pt")


# --- MONAI -----------------------------------------------------------------------------------------

# Mandatory keys of metadata.json and of a tensor in it, with their types: MONAI's bundle specification
# (docs.monai.io, "MONAI Bundle Specification", as of MONAI 1.4).
METADATA_KEYS = {
    "version": str,
    "monai_version": str,
    "pytorch_version": str,
    "numpy_version": str,
    "required_packages_version": dict,
    "task": str,
    "description": str,
    "authors": str,
    "copyright": str,
    "network_data_format": dict,
}
OPTIONAL_KEYS = {
    "schema": str,
    "changelog": dict,
    "name": str,
    "data_source": str,
    "data_type": str,
    "image_classes": str,
    "label_classes": str,
    "pred_classes": str,
    "eval_metrics": dict,
    "intended_use": str,
    "references": list,
}
TENSOR_KEYS = {
    "type": str,
    "format": str,
    "num_channels": int,
    "spatial_shape": list,
    "dtype": str,
    "value_range": list,
    "is_patch_data": bool,
    "channel_def": dict,
}
TENSOR_TYPES = ("image", "series", "tuples", "probabilities")
TENSOR_FORMATS = ("magnitude", "hounsfield", "kspace", "raw", "labels", "classes", "segmentation", "latent")


def read_metadata(folder: Path) -> dict[str, Any]:
    return json.loads((folder / bundles.METADATA).read_text())


def check_keys(
    table: dict[str, Any], wanted: dict[str, type], optional: dict[str, type] | None = None
) -> None:
    known = wanted | (optional or {})
    assert set(wanted) <= set(table) <= set(known)
    assert [key for key, value in table.items() if not isinstance(value, known[key])] == []


def check_tensor(tensor: dict[str, Any]) -> None:
    check_keys(tensor, TENSOR_KEYS, {"modality": str})
    assert tensor["type"] in TENSOR_TYPES
    assert tensor["format"] in TENSOR_FORMATS
    assert all(isinstance(side, int | str) for side in tensor["spatial_shape"])
    assert len(tensor["value_range"]) in (0, 2)
    assert set(tensor["channel_def"]) == {str(i) for i in range(tensor["num_channels"])}
    assert all(isinstance(meaning, str) for meaning in tensor["channel_def"].values())


def test_metadata_follows_the_specification(saved: Path) -> None:
    metadata = read_metadata(saved)
    check_keys(metadata, METADATA_KEYS, OPTIONAL_KEYS)
    assert metadata["version"] in metadata["changelog"]
    for table in (metadata["required_packages_version"], metadata["changelog"]):
        assert all(isinstance(value, str) for value in table.values())
    formats = metadata["network_data_format"]
    assert {side: list(tensors) for side, tensors in formats.items()} == {
        "inputs": ["image"],
        "outputs": ["pred"],
    }
    check_tensor(formats["inputs"]["image"])
    check_tensor(formats["outputs"]["pred"])


def test_metadata_tells_the_model(saved: Path) -> None:
    metadata = read_metadata(saved)
    formats = metadata["network_data_format"]
    assert formats["inputs"]["image"]["modality"] == "CT"
    assert formats["inputs"]["image"]["spatial_shape"] == [64, 64]  # the student's
    assert formats["outputs"]["pred"]["channel_def"] == {"0": "background", "1": "liver"}
    assert "liver" in metadata["task"]
    assert "Research only" in metadata["intended_use"]


def test_readme_says_labels_training_and_limits(saved: Path) -> None:
    text = (saved / "docs" / "README.md").read_text()
    for part in ("| 1 | liver | 10200004 |", "| gan images | 1234 |", "Research only", "-160 to 240 HU"):
        assert part in text
    assert "Apache-2.0" in (saved / "LICENSE").read_text().splitlines()[0]


def test_nothing_in_a_bundle_is_pickled_or_local(saved: Path) -> None:
    files = [file for file in saved.rglob("*") if file.is_file()]
    assert {file.suffix for file in files} == {".json", ".safetensors", ".md", ""}
    texts = "".join(file.read_text() for file in files if file.suffix != ".safetensors")
    assert str(Path.home()) not in texts
    assert str(saved) not in texts


def test_monai_checks_input_and_output_against_the_metadata(saved: Path) -> None:
    pytest.importorskip("monai.bundle")
    from monai.bundle import verify_net_in_out

    verify_net_in_out(
        "network_def",
        meta_file=str(saved / bundles.METADATA),
        config_file=str(saved / bundles.INFERENCE),
        bundle_root=str(saved),
        device="cpu",
    )


def monai_command(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    pytest.importorskip("fire", reason="the command line of monai.bundle needs fire")
    root = str(Path(sgan_core.__file__).parents[1])
    environment = os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "monai.bundle", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=120, check=False
    )


def configs(folder: Path) -> list[object]:
    """The options of monai.bundle that name a bundle's files."""
    files = ["--config_file", folder / bundles.INFERENCE, "--meta_file", folder / bundles.METADATA]
    return [*files, "--bundle_root", folder, "--device", "cpu"]


def write_scan(path: Path, shape: tuple[int, int, int] = (40, 36, 3)) -> np.ndarray:
    """A CT of noise. Returns its affine."""
    path.parent.mkdir(exist_ok=True)
    affine = np.diag([-2.0, 3.0, 5.0, 1.0])
    affine[:3, 3] = 10, -20, 30
    voxels = np.random.default_rng(0).integers(-1000, 400, shape).astype(np.int16)
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return affine


def test_monai_bundle_run_segments_a_volume(copied: Path, tmp_path: Path) -> None:
    affine = write_scan(tmp_path / "scan.nii.gz")
    image = ["--image", tmp_path / "scan.nii.gz", "--quality", "fast"]
    done = monai_command("run", *configs(copied), *image, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = nib.load(copied / "eval" / "scan_seg.nii.gz")
    assert result.shape == (40, 36, 3)
    np.testing.assert_allclose(result.affine, affine)
    assert set(np.unique(result.dataobj)) <= {0, 1}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with everything."""
    config = tiny()
    curvature = Curvature(config.generator.num_ws, config.generator.w_dim)
    folder = tmp_path_factory.mktemp("whole") / "bundle"
    return save(folder, config, student=make_student(config), curvature=curvature)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of a student alone."""
    config = tiny()
    torch.manual_seed(3)
    folder = tmp_path_factory.mktemp("alone") / "bundle"
    return save_bundle(folder, name="liver", config=config, student=make_student(config), facts=FACTS)


def workflow_of(folder: Path, **changes: object) -> Any:
    from monai.bundle import ConfigWorkflow

    return ConfigWorkflow(
        config_file=str(folder / bundles.INFERENCE),
        meta_file=str(folder / bundles.METADATA),
        workflow_type="inference",
        bundle_root=str(folder),
        **changes,
    )


@pytest.mark.parametrize("kind", ["saved", "whole", "alone"])
def test_monai_finds_every_property_of_an_inference_workflow(
    kind: str, request: pytest.FixtureRequest
) -> None:
    """The required ones, and no optional one under a wrong name; without any image there yet."""
    from monai.bundle.properties import InferProperties, MetaProperties

    folder = request.getfixturevalue(kind)
    workflow = workflow_of(folder, device="cpu")
    workflow.initialize()
    assert workflow.check_properties() == []
    required = {name for name, facts in (InferProperties | MetaProperties).items() if facts["required"]}
    optional = {"preprocessing", "postprocessing", "description", "spatial_shape", "channel_def"}
    assert [name for name in required | optional if getattr(workflow, name) is None] == []
    assert (workflow.bundle_root, workflow.spatial_shape) == (str(folder), [64, 64])
    assert isinstance(workflow.network_def, torch.nn.Module)
    assert isinstance(workflow.dataset, torch.utils.data.Dataset)


@pytest.mark.parametrize("quality", ["fast", "standard"])
@pytest.mark.parametrize("kind", ["whole", "alone"])
def test_a_workflow_gives_the_mask_of_sgan_segment(
    kind: str, quality: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """Of every image in the folder that it is set to, and the same record."""
    from sgan_core.cli.segment import main

    folder = request.getfixturevalue(kind)
    for name in ("one", "two"):
        write_scan(tmp_path / "scans" / f"{name}.nii.gz")
    options = ["--model", str(folder), "--quality", quality, "--device", "cpu"]
    assert main([str(tmp_path / "scans"), *options, "--output", str(tmp_path / "ours")]) == 0
    workflow = workflow_of(folder, output_dir=str(tmp_path / "theirs"), quality=quality)
    workflow.dataset_dir = str(tmp_path / "scans")
    workflow.device = torch.device("cpu")
    workflow.initialize()
    assert len(workflow.dataset) == 2
    workflow.run()
    workflow.finalize()
    for name in ("one", "two"):
        ours, theirs = (nib.load(tmp_path / who / f"{name}_seg.nii.gz") for who in ("ours", "theirs"))
        np.testing.assert_array_equal(np.asarray(theirs.dataobj), np.asarray(ours.dataobj))
        np.testing.assert_array_equal(theirs.affine, ours.affine)
        assert np.asarray(ours.dataobj).any()
    records = [json.loads((tmp_path / who / "run.json").read_text())["cases"] for who in ("ours", "theirs")]
    for field in ("method", "trust", "labels", "reconstruction", "reconstruction_error"):
        assert [case[field] for case in records[0]] == [case[field] for case in records[1]]


def test_parts_of_a_workflow_can_be_used_one_by_one(whole: Path, tmp_path: Path) -> None:
    write_scan(tmp_path / "scan.nii.gz", (32, 32, 3))
    workflow = workflow_of(whole, device="cpu", image=str(tmp_path / "scan.nii.gz"), quality="fast")
    workflow.initialize()
    item = workflow.dataset[0]
    assert (item["case"], item["image"].shape) == ("scan", (3, 1, 64, 64))
    assert -1 <= item["image"].min() < item["image"].max() <= 1
    probs = workflow.inferer(item["image"], workflow.network_def)
    assert probs.shape == (3, 2, 64, 64)
    torch.testing.assert_close(probs.float().sum(dim=1), torch.ones(3, 64, 64), atol=2e-3, rtol=0)
    by_student = workflow.network_def.bundle.student(item["image"]).softmax(dim=1)
    torch.testing.assert_close(probs.float(), by_student, atol=2e-3, rtol=0)


def test_parts_of_a_workflow_can_be_replaced(whole: Path, tmp_path: Path) -> None:
    """And work anew in a folder that the usual ones have filled."""
    write_scan(tmp_path / "scan.nii.gz")
    files = {"image": str(tmp_path / "scan.nii.gz"), "output_dir": str(tmp_path / "out")}
    workflow = workflow_of(whole, device="cpu", quality="fast", **files)
    workflow.initialize()
    workflow.run()
    seen: list[str] = []

    class Watched(SliceInferer):
        def label(self, *args: Any) -> Any:
            seen.append("inferer")
            return super().label(*args)

    workflow.inferer = Watched("fast")
    workflow.initialize()
    workflow.run()
    assert seen == ["inferer"]
    assert json.loads((tmp_path / "out" / "run.json").read_text())["options"] == {"quality": "fast"}


def test_a_network_of_another_kind_is_refused(whole: Path) -> None:
    workflow = workflow_of(whole, device="cpu", quality="fast")
    workflow.initialize()
    with pytest.raises(TypeError, match="Identity; the bundle's network_def is needed"):
        workflow.inferer(torch.zeros(1, 1, 32, 32), torch.nn.Identity())


def test_a_workflow_without_images_says_where_it_looked(whole: Path) -> None:
    workflow = workflow_of(whole, device="cpu")
    workflow.initialize()
    with pytest.raises(InputError, match="images: no such file or folder"):
        workflow.evaluator.run()


@pytest.mark.parametrize("kind", ["whole", "alone"])
def test_monai_verifies_the_network_from_the_command_line(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    done = monai_command(
        "verify_net_in_out", "network_def", *configs(request.getfixturevalue(kind)), cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "verified with no error" in done.stdout + done.stderr


def test_bundle_is_a_plain_record(saved: Path) -> None:
    assert dataclasses.is_dataclass(Bundle)
    described = describe(saved)
    assert described["labels"] == [{"value": 1, "name": "liver"}]
    sizes = described["size_px"], described["generator_size_px"]
    assert (described["modality"], *sizes) == ("ct", 64, 32)
    assert described["bytes"] > 10_000
    json.dumps(described)
