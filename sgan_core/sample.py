"""Synthetic image + label pairs, written as pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from sgan_core.batch import prepare_folder
from sgan_core.bundle import Bundle
from sgan_core.imaging.writers import write_mask_png, write_picture
from sgan_core.sheets import colours_of, outline, write_sheet

_BATCH = 32
_SHEET = 64  # pairs shown on the sheet at most
_COLUMNS = 8


def write_pairs(bundle: Bundle, output: Path, count: int, *, truncation: float = 1.0, seed: int = 0) -> Path:
    """Draw ``count`` pairs into images/ and labels/ of ``output``; returns the contact sheet.

    Images are 8-bit: 0 is the low end of the model's intensity range, 255 the high end. Labels are palette
    PNG whose pixels are the label values. truncation is psi. The same seed gives the same pairs.
    Raises InputError when ``output`` cannot be written, or the model is a student alone.
    """
    generator = bundle.generator
    images, labels = output / "images", output / "labels"
    for folder in (output, images, labels):
        prepare_folder(folder)
    z = torch.randn(count, bundle.config.generator.z_dim, generator=torch.Generator().manual_seed(seed))
    colours, pictures = colours_of(bundle.config.labels), []
    for first in range(0, count, _BATCH):
        with torch.no_grad():
            pair = generator(z[first : first + _BATCH].to(bundle.device), truncation=truncation)
        # (B, C, S, S) in about [-1, 1] and (B, S, S)
        drawn = zip(pair.image.cpu().numpy(), pair.labels().cpu().numpy().astype(np.uint8), strict=True)
        for number, (image, labelmap) in enumerate(drawn, start=first):
            name = f"sample_{number:05d}.png"
            write_picture(images / name, _as_bytes(image))
            write_mask_png(labels / name, labelmap, bundle.config.labels)
            if number < _SHEET:
                pictures.append(outline(image, labelmap, colours))
    sheet = output / "sheet.png"
    write_sheet(sheet, [pictures[k : k + _COLUMNS] for k in range(0, len(pictures), _COLUMNS)])
    return sheet


def _as_bytes(image: np.ndarray) -> np.ndarray:
    """[-1, 1] as 0 .. 255, uint8."""
    return ((np.clip(image, -1, 1) + 1) * 127.5).round().astype(np.uint8)
