"""A bundle's parts for users of MONAI: what ``configs/inference.json`` builds.

The names and properties are those of MONAI's inference workflows (monai.bundle.properties.InferProperties).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import Inferer
from torch import Tensor, nn
from torch.utils.data import Dataset

from sgan_core.batch import BatchConfig, BatchResult, run_batch
from sgan_core.bundle import Bundle, load_bundle
from sgan_core.device import DEVICES, choose_device
from sgan_core.errors import InputError
from sgan_core.imaging.dicom import choose_series, read_series
from sgan_core.imaging.image import Picture, Volume
from sgan_core.imaging.readers import read_image
from sgan_core.imaging.slices import enlarged, reduced
from sgan_core.inputs import Input, Inputs, find_inputs
from sgan_core.labelling import Labelling, OnProgress, SegmentConfig, label_slices
from sgan_core.segment import Prepared, Segmentation, finish, label, prepare


class SemanticGANSegmenter(nn.Module):
    """A bundle as one network: ``forward`` by the encoder, or by the student of a model that is a student alone.

    bundle_root: a bundle folder, a .zip of one or the name of a bundled model.
    device: "auto", "cpu", "cuda" or "mps", or what torch.device takes.
    Raises InputError as ``load_bundle`` and ``choose_device``.
    """

    def __init__(self, bundle_root: str | Path, device: str | torch.device = "auto") -> None:
        super().__init__()
        named = (
            choose_device(device) if isinstance(device, str) and device in DEVICES else torch.device(device)
        )
        self.bundle = load_bundle(bundle_root, named)
        if self.bundle.inverter is None:
            self.student = self.bundle.student
        else:
            self.encoder, self.generator = self.bundle.encoder, self.bundle.generator

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, S, S) in [-1, 1], S the student's size -> label logits (B, K, S, S); 0 is background."""
        if self.bundle.inverter is None:
            assert self.student is not None
            logits: Tensor = self.student(image)
            return logits
        size = self.bundle.config.generator.size
        logits = self.generator.synthesis(self.encoder(reduced(image, size))).label_logits
        return enlarged(logits, image.shape[-1])


class Preprocessing:
    """Brings images to the model: units, intensities in [-1, 1], slices of the model's size."""

    def __init__(self, network: SemanticGANSegmenter) -> None:
        self.bundle = network.bundle

    def __call__(self, one: Input) -> dict[str, Any]:
        """Read a case -> "case" (its name), "image" (N, C, size, size) and "prepared", what leads back to its grid.

        Raises InputError for a case that cannot be read.
        """
        if one.problem:
            raise InputError(one.problem)
        image = read_series(choose_series(one.found, None, one.path)) if one.found else read_image(one.path)
        prepared = self.prepare(image, SegmentConfig())
        return {
            "case": one.name,
            "image": torch.from_numpy(prepared.stack.images),
            "prepared": prepared,
        }

    def prepare(self, image: Volume | Picture, config: SegmentConfig) -> Prepared:
        """As ``sgan_core.segment.prepare``."""
        return prepare(image, self.bundle, config)


class Cases(Dataset):
    """The images of a folder, or one image file, as a dataset of what ``transform`` makes of each.

    image: as ``find_inputs`` takes it: NIfTI, NRRD, pictures, DICOM. It is looked at when it is first needed;
    ``len`` and indexing raise its InputError.
    """

    def __init__(self, image: str | Path, transform: Preprocessing) -> None:
        self.image = Path(image)
        self.transform = transform
        self._found: Inputs | None = None

    @property
    def found(self) -> Inputs:
        """The cases, and what was left out."""
        if self._found is None:
            self._found = find_inputs([self.image])
        return self._found

    def __len__(self) -> int:
        return len(self.found.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.transform(self.found.inputs[index])


class SliceInferer(Inferer):
    """Labels the slices of one case together, by student, encoder and inversion, as ``quality`` asks.

    quality: "fast", "standard" or "careful". Raises InputError for another.
    """

    def __init__(self, quality: str = "standard") -> None:
        super().__init__()
        self.config = SegmentConfig(quality=quality)

    def __call__(self, inputs: Tensor, network: Callable[..., Any], *args: Any, **kwargs: Any) -> Tensor:
        """inputs: (N, C, size, size) in [-1, 1], network: of the bundle -> label probabilities (N, K, size, size)."""
        if not isinstance(network, SemanticGANSegmenter):
            raise TypeError(f"the network is a {type(network).__name__}; the bundle's network_def is needed")
        images = np.ascontiguousarray(inputs.cpu().numpy(), np.float32)
        return torch.from_numpy(label_slices(images, network.bundle, self.config).label_probs)

    def label(self, prepared: Prepared, bundle: Bundle, on_progress: OnProgress) -> Labelling:
        """The same for a case whose image is known, with what trust needs."""
        return label(prepared, bundle, self.config, on_progress=on_progress)


class Postprocessing:
    """Makes slices one label map on the grid of the image, and judges it."""

    def __init__(self, network: SemanticGANSegmenter) -> None:
        self.bundle = network.bundle

    def __call__(self, prepared: Prepared, found: Labelling, config: SegmentConfig) -> Segmentation:
        """As ``sgan_core.segment.finish``."""
        return finish(prepared, found, self.bundle, config)


class Evaluator:
    """Runs every case of a dataset through its preprocessing, the inferer and the postprocessing, and writes it."""

    def __init__(
        self,
        dataset: Cases,
        network: SemanticGANSegmenter,
        inferer: SliceInferer,
        postprocessing: Postprocessing,
        output_dir: str | Path,
    ) -> None:
        self.dataset = dataset
        self.network = network
        self.inferer = inferer
        self.postprocessing = postprocessing
        self.output_dir = Path(output_dir)

    def run(self) -> BatchResult:
        """Write <case>_seg.* of every case to ``output_dir``, with run.json, as sgan-segment does.

        All of them anew: what a part that was replaced makes of a case cannot be known from an earlier run.
        Raises InputError for a dataset without an image, and for a single image that cannot be read.
        """
        found, bundle = self.dataset.found, self.network.bundle
        config = BatchConfig(segment=self.inferer.config, report=False)
        options = {"quality": self.inferer.config.quality}
        return run_batch(
            found.inputs,
            bundle,
            self.output_dir,
            config,
            options=options,
            left_out=found.left_out,
            redo=True,
            segment=self._segment,
        )

    def _segment(
        self,
        image: Volume | Picture,
        bundle: Bundle,
        config: SegmentConfig,
        *,
        on_progress: OnProgress,
        **_: Any,
    ) -> Segmentation:
        """In place of ``segment_volume``: the same steps, by the parts of the workflow."""
        prepared = self.dataset.transform.prepare(image, config)
        return self.postprocessing(prepared, self.inferer.label(prepared, bundle, on_progress), config)
