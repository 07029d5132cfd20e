"""What every test may use: the shared real data, when it is there, DICOM files made by pydicom, a small model."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, generate_frames
from pydicom.sequence import Sequence as Items
from pydicom.uid import (
    UID,
    CTImageStorage,
    DigitalXRayImageStorageForPresentation,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    MRImageStorage,
    VLPhotographicImageStorage,
    generate_uid,
)

from sgan_core import batch
from sgan_core.bundle import Bundle, Inverter
from sgan_core.cohort import Intensity, Label
from sgan_core.config import EncoderConfig, InversionConfig, preset
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.slices import to_model
from sgan_core.imaging.writers import write_volume
from sgan_core.labelling import Chosen
from sgan_core.networks.discriminators import ImageDiscriminator
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator
from sgan_core.networks.perceptual import make_perceptual
from sgan_core.segment import Segmentation
from sgan_core.trust import Trust


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with real medical images, ``SGAN_SHARED`` (default ``../shared``)."""
    default = Path(__file__).resolve().parents[2] / "shared"
    folder = Path(os.environ.get("SGAN_SHARED", default))
    if not folder.is_dir():
        if "SGAN_SHARED" in os.environ:
            pytest.fail(f"SGAN_SHARED={folder} is not a folder")
        pytest.skip("real test data not found; set SGAN_SHARED")
    return folder.resolve()


# --- DICOM files ---

_CLASSES = {
    "CT": CTImageStorage,
    "MR": MRImageStorage,
    "DX": DigitalXRayImageStorageForPresentation,
    "XC": VLPhotographicImageStorage,
}


class DicomFiles:
    """Writes images as DICOM. Positions and directions are DICOM's: LPS, mm."""

    def image(self, pixels: np.ndarray, modality: str = "CT", **attributes: Any) -> Dataset:
        """One image: pixels (rows, columns) integers, (rows, columns, 3) uint8 or (frames, rows, columns)."""
        colour = pixels.ndim == 3 and pixels.shape[2] == 3
        dataset = Dataset()
        dataset.SOPClassUID = _CLASSES[modality]
        dataset.SOPInstanceUID = generate_uid()
        dataset.StudyInstanceUID = dataset.SeriesInstanceUID = "1.2.3"
        dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = (
            "SECRET^Name",
            "SECRET1",
            "19010203",
        )
        dataset.Modality = modality
        dataset.Rows, dataset.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        if pixels.ndim == 3 and not colour:
            dataset.NumberOfFrames = len(pixels)
        dataset.SamplesPerPixel = 3 if colour else 1
        dataset.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            dataset.PlanarConfiguration = 0
        dataset.BitsAllocated = dataset.BitsStored = 8 * pixels.dtype.itemsize
        dataset.HighBit = dataset.BitsStored - 1
        dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
        content = pixels.tobytes()
        dataset.add_new(
            "PixelData", "OB" if dataset.BitsAllocated == 8 else "OW", content + b"\0" * (len(content) % 2)
        )
        for keyword, value in attributes.items():
            setattr(dataset, keyword, value)
        return dataset

    def save(self, path: Path, dataset: Dataset, syntax: str = ExplicitVRLittleEndian) -> Path:
        """Write a data set as a file with preamble, compressed when ``syntax`` is a compression."""
        dataset.file_meta = FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        if syntax in (JPEG2000Lossless, JPEGLosslessSV1):
            frames = (
                dataset.pixel_array[None] if dataset.get("NumberOfFrames", 1) == 1 else dataset.pixel_array
            )
            if syntax == JPEG2000Lossless:
                openjpeg = pytest.importorskip("openjpeg.utils")  # pydicom's encoder asks for pylibjpeg too
                encoded = [openjpeg.encode_array(frame, bits_stored=dataset.BitsStored) for frame in frames]
            else:
                encoded = [self.jpeg_lossless(frame) for frame in frames]
            dataset.PixelData = encapsulate(encoded)
            dataset["PixelData"].is_undefined_length = True
            dataset.file_meta.TransferSyntaxUID = syntax
        elif syntax == JPEGLSLossless:
            pytest.importorskip("jpeg_ls")
            dataset.compress(syntax, encoding_plugin="pyjpegls", generate_instance_uid=False)
        elif syntax != ExplicitVRLittleEndian:
            dataset.compress(syntax, generate_instance_uid=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        dataset.save_as(path, enforce_file_format=True)
        return path

    def write(self, folder: Path, images: Sequence[Dataset], syntax: str = ExplicitVRLittleEndian) -> Path:
        """Little endian data sets as files 0.dcm, 1.dcm, ... of any transfer syntax; they stay as they are."""
        for number, original in enumerate(images):
            image, path = copy.deepcopy(original), folder / f"{number}.dcm"
            if UID(syntax).is_encapsulated:
                self.save(path, image, syntax)
                continue
            image.file_meta = FileMetaDataset()
            image.file_meta.TransferSyntaxUID = syntax
            if syntax == ExplicitVRBigEndian:
                for element in image.iterall():
                    if element.VR == "OW":
                        element.value = _swapped(element, image)
            path.parent.mkdir(parents=True, exist_ok=True)
            image.preamble = b"\0" * 128
            pydicom.dcmwrite(
                path,
                image,
                force_encoding=True,
                implicit_vr=syntax == ImplicitVRLittleEndian,
                little_endian=syntax != ExplicitVRBigEndian,
            )
        return folder

    def jpeg_lossless(self, codes: np.ndarray) -> bytes:
        """A frame (rows, columns) of JPEG Lossless, which pydicom alone cannot decode, by SimpleITK."""
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG")
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "code.dcm"
            writer.SetFileName(str(path))
            writer.Execute(sitk.GetImageFromArray(codes[None]))
            return next(generate_frames(pydicom.dcmread(path).PixelData, number_of_frames=1))

    def place(
        self,
        dataset: Dataset,
        position: Sequence[float],
        directions: np.ndarray | None = None,
        spacing: tuple[float, float] = (0.7, 0.8),
    ) -> Dataset:
        """Give an image a position. directions (3, 2): along a row, along a column; spacing: columns, rows."""
        directions = np.eye(3)[:, :2] if directions is None else directions
        dataset.ImagePositionPatient = [_decimal(value) for value in position]
        dataset.ImageOrientationPatient = [_decimal(value) for value in directions.T.ravel()]
        dataset.PixelSpacing = [_decimal(spacing[1]), _decimal(spacing[0])]
        return dataset

    def stack(
        self,
        array: np.ndarray,
        *,
        origin: Sequence[float] = (-10.0, -20.0, 30.0),
        directions: np.ndarray | None = None,
        spacing: tuple[float, float, float] = (0.7, 0.8, 2.0),
        positions: np.ndarray | None = None,
        **attributes: Any,
    ) -> list[Dataset]:
        """The slices of an array (I, J, K). positions (K, 3) replace the regular ones along the normal."""
        directions = np.eye(3)[:, :2] if directions is None else directions
        normal = np.cross(directions[:, 0], directions[:, 1])
        if positions is None:
            positions = np.array(origin) + np.arange(array.shape[2])[:, None] * spacing[2] * normal
        images = [
            self.image(np.ascontiguousarray(array[:, :, k].T), **attributes) for k in range(array.shape[2])
        ]
        for k, (image, position) in enumerate(zip(images, positions, strict=True)):
            self.place(image, position, directions, spacing[:2]).InstanceNumber = k + 1
        return images

    def save_all(self, folder: Path, images: Sequence[Dataset], seed: int = 0) -> Path:
        """Write images under names whose order says nothing."""
        names = np.random.default_rng(seed).permutation(len(images))
        for image, name in zip(images, names, strict=True):
            self.save(folder / f"{name:04d}", image)
        return folder

    def enhanced(
        self,
        array: np.ndarray,
        modality: str = "CT",
        *,
        order: Sequence[int] | None = None,
        shared: bool = True,
        echo_times: Sequence[float] = (),
        spacing: tuple[float, float, float] = (0.7, 0.8, 2.0),
        slopes: Sequence[float] | None = None,
        **attributes: Any,
    ) -> Dataset:
        """A multi-frame object of an array (I, J, K), frames in ``order``.

        shared: whether what all frames have alike stands once for all of them.
        """
        order = list(range(array.shape[2])) if order is None else order
        frames = np.ascontiguousarray(array[:, :, order].transpose(2, 1, 0))
        dataset = self.image(frames, modality, **attributes)
        dataset.SOPClassUID = EnhancedCTImageStorage if modality == "CT" else EnhancedMRImageStorage
        measures, orientation, values = Dataset(), Dataset(), Dataset()
        measures.PixelSpacing, measures.SliceThickness = [spacing[1], spacing[0]], 9.0
        orientation.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = 1, -1000, "HU"
        alike = {"PixelMeasuresSequence": measures, "PlaneOrientationSequence": orientation}
        if slopes is None:
            alike["PixelValueTransformationSequence"] = values
        dataset.SharedFunctionalGroupsSequence = Items([_groups(alike) if shared else Dataset()])
        items = []
        for frame, k in enumerate(order):
            position = Dataset()
            position.ImagePositionPatient = [-10.0, -20.0, 30.0 + spacing[2] * k]
            groups = {"PlanePositionSequence": position} | ({} if shared else alike)
            if slopes is not None:
                own = Dataset()
                own.RescaleSlope, own.RescaleIntercept, own.RescaleType = slopes[k], 0, "US"
                groups["PixelValueTransformationSequence"] = own
            if echo_times:
                echo = Dataset()
                echo.EffectiveEchoTime = echo_times[frame]
                groups["MREchoSequence"] = echo
            items.append(_groups(groups))
        dataset.PerFrameFunctionalGroupsSequence = Items(items)
        return dataset


def _swapped(element: pydicom.DataElement, image: Dataset) -> bytes:
    size = image.BitsAllocated // 8 if element.keyword == "PixelData" else 2
    content = np.frombuffer(element.value + b"\0" * (-len(element.value) % 2), np.uint8)
    return content.reshape(-1, max(size, 2))[:, ::-1].tobytes()


def _groups(groups: dict[str, Dataset]) -> Dataset:
    item = Dataset()
    for keyword, group in groups.items():
        setattr(item, keyword, Items([group]))
    return item


def _decimal(value: float) -> str:
    """A decimal string of at most 16 characters."""
    return f"{float(value):.9f}"[:16]


@pytest.fixture(scope="session")
def dicom_files() -> DicomFiles:
    """Writes DICOM files."""
    return DicomFiles()


# --- a model ---


@pytest.fixture(scope="session")
def untrained() -> Bundle:
    """An untrained CT model of 32 px with two labels."""
    channels = {4: 8, 8: 8, 16: 8, 32: 8}
    config = preset("tiny", modality="ct", num_classes=3, size=32)
    config = replace(
        config,
        generator=replace(config.generator, channels=channels, w_dim=8, z_dim=8),
        image_discriminator=replace(config.image_discriminator, channels=channels),
        encoder=EncoderConfig("resnet18", 8, 8, "light", "group", stem_stride=False),
        inversion=InversionConfig(steps=3, check_steps=2),
        perceptual="discriminator",
        intensity=Intensity(-160.0, 240.0, "HU"),
        labels=(Label(1, "liver", (200, 90, 60)), Label(2, "spleen", (90, 90, 200))),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = Generator(config.generator)
        generator.update_mean_w(64)
        encoder = Encoder(
            config.encoder, size=32, image_channels=1, num_ws=config.generator.num_ws, w_dim=8
        ).eval()
        judge = ImageDiscriminator(config.image_discriminator, image_channels=1)
    perceptual = make_perceptual("discriminator", image_discriminator=judge)
    facts = {"validation_rmse_p95": 0.2}
    inverter = Inverter(generator, encoder, perceptual, None)
    return Bundle(Path("model"), "model", "0" * 64, config, facts, inverter, None, torch.device("cpu"))


# --- a batch, with a stand-in for the model ---

BATCH_GRID = Grid((8, 6, 3), np.diag([-2.0, -2.0, 5.0, 1.0]))


@pytest.fixture
def batch_bundle() -> Any:
    """What a batch asks of a model, see ``batch_scans``."""
    labels = (Label(1, "liver", (200, 90, 60)), Label(2, "left kidney / cyst", (90, 90, 200)))
    return SimpleNamespace(
        name="model",
        hash="0" * 64,
        facts={},
        device=SimpleNamespace(type="cpu"),
        config=SimpleNamespace(seed=0, labels=labels, modality="ct"),
        require_inverter=lambda: None,
    )


def _stand_in(image: Volume | Picture, bundle: Any, config: Any, **_: Any) -> Segmentation:
    """Every voxel is a left kidney."""
    stack = to_model(image, size=32, intensity=Intensity(-160.0, 240.0, "HU"))
    shape = image.array.shape if isinstance(image, Volume) else image.array.shape[1:]
    probs = np.zeros((len(stack.images), 3, 32, 32), np.float16)
    probs[:, 2] = 1
    labels = np.full(shape, 2, np.uint8)
    errors = np.zeros(len(stack.images))
    trust = Trust("ok", 1.0, "made up")
    chosen = Chosen("paper", "asked for")
    return Segmentation(
        labels, stack, stack.images, probs, probs, errors, trust, "encoder", chosen, 0, 0.1, ()
    )


@pytest.fixture
def batch_scans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Three scans, a to c, and a stand-in for the model that segments them."""
    monkeypatch.setattr(batch, "segment_volume", _stand_in)
    array = np.random.default_rng(0).normal(0, 300, BATCH_GRID.shape).astype(np.float32)
    paths = [tmp_path / f"{name}.nii.gz" for name in "abc"]
    for path in paths:
        write_volume(path, array, BATCH_GRID)
    return paths


@pytest.fixture
def write_dicom_scan(dicom_files: DicomFiles) -> Callable[[Path], Path]:
    """Writes a small CT series into a folder."""

    def write(folder: Path) -> Path:
        array = np.random.default_rng(0).integers(-1000, 400, (6, 5, 4)).astype(np.int16)
        return dicom_files.save_all(folder, dicom_files.stack(array))

    return write
