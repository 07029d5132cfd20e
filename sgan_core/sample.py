"""Synthetic image + label pairs, written as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sgan_core.bundle import Bundle
from sgan_core.imaging.writers import write_mask_png, write_picture_png
from sgan_core.training.samples import colours_of, outline, write_sheet

_BATCH = 32
_SHEET = 64  # pairs shown on the sheet at most


def write_pairs(bundle: Bundle, output: Path, count: int, *, truncation: float = 1.0, seed: int = 0) -> Path:
    """Draw ``count`` pairs into images/ and labels/ of ``output``; returns the contact sheet.

    Images are 8-bit: 0 is the low end of the model's intensity range, 255 the high end. truncation is psi.
    """
    (output / "images").mkdir(parents=True, exist_ok=True)
    (output / "labels").mkdir(exist_ok=True)
    z = torch.randn(count, bundle.config.generator.z_dim, generator=torch.Generator().manual_seed(seed))
    colours, pictures, number = colours_of(bundle.config.labels), [], 0
    for part in z.split(_BATCH):
        with torch.no_grad():
            pair = bundle.generator(part.to(bundle.device), truncation=truncation)
        for image, labels in zip(pair.image.cpu().numpy(), pair.labels().cpu().numpy().astype(np.uint8), strict=True):
            name = f"sample_{number:05d}.png"
            grey = ((np.clip(image, -1, 1) + 1) * 127.5).round().astype(np.uint8)
            write_picture_png(output / "images" / name, grey)
            write_mask_png(output / "labels" / name, labels, bundle.config.labels)
            if number < _SHEET:
                pictures.append(outline(image, labels, colours))
            number += 1
    sheet = output / "sheet.png"
    write_sheet(sheet, [pictures[k : k + 8] for k in range(0, len(pictures), 8)])
    return sheet
