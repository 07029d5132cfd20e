"""Label maps opened by SimpleITK."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from sources import CLOTH, LIVER, SPLEEN, Source, affine, pattern
from tools import Opened, in_order_of, opened_by_itk

from sgan_core.imaging.grid import Grid, ras_from_lps
from sgan_core.imaging.writers import write_labels


def test_labels_lie_at_their_place(labelled: Source) -> None:
    for path in (labelled.image, labelled.nifti):
        assert path is not None
        opened = opened_by_itk(path)
        assert opened.values.dtype == np.uint8
        np.testing.assert_array_equal(in_order_of(labelled, opened), labelled.mask)


def test_a_sheared_grid_is_exact_in_nrrd(tmp_path: Path) -> None:
    """ITK's NIfTI reader takes the shear out, so that the same labels lie elsewhere; nibabel leaves it in."""
    labels, matrix = (LIVER, SPLEEN, CLOTH), affine((10.0, 20.0, 30.0), (0, 0, 0), (0.7, 0.8, 2.5))
    matrix[1, 2] = 0.4  # from slice to slice a little along the columns, as under gantry tilt
    mask = pattern((20, 24, 9), labels)
    nrrd, nifti = tmp_path / "tilt_seg.seg.nrrd", tmp_path / "tilt_seg.nii.gz"
    source = Source("tilt", [], mask, matrix, labels, None, nrrd, nifti)
    for path in (nrrd, nifti):
        write_labels(path, mask, Grid(mask.shape, ras_from_lps(matrix)), labels)
    np.testing.assert_array_equal(in_order_of(source, opened_by_itk(nrrd)), mask)
    found = nib.load(nifti)
    opened = Opened(np.asarray(found.dataobj), ras_from_lps(found.affine))
    np.testing.assert_array_equal(in_order_of(source, opened), mask)
    with pytest.raises(AssertionError, match="mm off"):
        in_order_of(source, opened_by_itk(nifti))


def test_a_picture_is_shown_in_the_labels_colours(picture: Source) -> None:
    """Its palette is applied; the values themselves are Pillow's to read, in the tests of the writer."""
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(picture.image)))  # (H, W, 3)
    (label,) = picture.labels
    expected = np.where(picture.mask[:, :, 0].T[..., None] == label.value, np.array(label.rgb), 0)
    np.testing.assert_array_equal(found, expected)
