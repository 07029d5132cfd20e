"""A bundle's model for users of MONAI: what ``configs/inference.json`` builds."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from sgan_core.bundle import load_bundle
from sgan_core.device import choose_device


class SemanticGANSegmenter(nn.Module):
    """A bundle as one module: ``forward`` by the encoder (or the student alone), ``segment`` as sgan-segment does.

    bundle_root: a bundle folder, a .zip of one or the name of a bundled model.
    device: "auto", "cpu", "cuda" or "mps". Raises InputError as ``load_bundle`` and ``choose_device``.
    """

    def __init__(self, bundle_root: str | Path, device: str = "auto") -> None:
        super().__init__()
        self.bundle = load_bundle(bundle_root, choose_device(device))
        if self.bundle.inverter is None:
            self.student = self.bundle.student
        else:
            self.encoder, self.generator = self.bundle.encoder, self.bundle.generator

    def forward(self, image: Tensor) -> Tensor:
        """image: (B, C, size, size) in [-1, 1] -> label logits (B, K, size, size); 0 is background."""
        if self.bundle.inverter is None:
            assert self.student is not None
            logits: Tensor = self.student(image)
            return logits
        return self.generator.synthesis(self.encoder(image)).label_logits

    def segment(self, image: str | Path, output_dir: str | Path, *, quality: str = "standard") -> None:
        """Segment an image file, or a folder of them, into ``output_dir``/<case>_seg.*, with run.json.

        quality: "fast" (encoder alone), "standard" (inversion) or "careful".
        Raises InputError for an image that cannot be read.
        """
        from sgan_core.batch import BatchConfig, run_batch
        from sgan_core.inputs import find_inputs
        from sgan_core.labelling import SegmentConfig

        config = BatchConfig(segment=SegmentConfig(quality=quality), report=False)
        options = {"quality": quality}
        run_batch(find_inputs([Path(image)]).inputs, self.bundle, Path(output_dir), config, options=options)
