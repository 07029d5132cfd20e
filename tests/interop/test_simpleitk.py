"""Label maps opened by SimpleITK."""

from __future__ import annotations

import numpy as np
import SimpleITK as sitk
from sources import Source
from tools import in_order_of, opened_by_itk


def test_labels_lie_at_their_place(labelled: Source) -> None:
    for path in (labelled.image, labelled.nifti):
        assert path is not None
        opened = opened_by_itk(path)
        assert opened.values.dtype == np.uint8
        np.testing.assert_array_equal(in_order_of(labelled, opened), labelled.mask)


def test_a_picture_is_shown_in_the_labels_colours(picture: Source) -> None:
    """Its palette is applied; the values themselves are Pillow's to read, in the tests of the writer."""
    found = sitk.GetArrayFromImage(sitk.ReadImage(str(picture.image)))  # (H, W, 3)
    (label,) = picture.labels
    expected = np.where(picture.mask[:, :, 0].T[..., None] == label.value, np.array(label.rgb), 0)
    np.testing.assert_array_equal(found, expected)
