"""Label maps opened by 3D Slicer's own readers, as segmentations and as volumes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from sources import Source
from tools import in_order_of, require_package

from sgan_core.imaging.terminology import label_codes, slicer_terminology

if TYPE_CHECKING:
    from mrml import Slicer


def test_segments_have_names_colours_terms_voxels_and_volumes(labelled: Source, slicer: Slicer) -> None:
    for segment, label in zip(slicer.segments(labelled.image), labelled.labels, strict=True):
        assert (segment.name, segment.value) == (label.name, label.value)
        np.testing.assert_allclose(segment.rgb, label.rgb, atol=0.5)
        assert segment.terminology == slicer_terminology(label)
        found = in_order_of(labelled, segment.opened)
        np.testing.assert_array_equal(found != 0, labelled.mask == label.value)
        assert segment.volume_ml == pytest.approx(labelled.volume_ml(label), rel=1e-3)


def test_terms_are_taken_apart_again(labelled: Source, slicer: Slicer) -> None:
    """A separator in a name would shift the parts of the entry."""
    for segment, label in zip(slicer.segments(labelled.image), labelled.labels, strict=True):
        category, kind = label_codes(label)
        assert segment.kind == (kind.scheme, kind.value, kind.meaning)
        assert segment.category == (category.scheme, category.value, category.meaning)
        assert not label.code or segment.kind[:2] == ("SCT", label.code)


def test_edits_are_drawn_on_the_voxels_of_the_image(labelled: Source, slicer: Slicer) -> None:
    in_order_of(labelled, slicer.reference_geometry(labelled.image))


@pytest.mark.parametrize("as_labels", [True, False])
def test_a_label_map_is_a_volume_at_its_place(labelled: Source, slicer: Slicer, as_labels: bool) -> None:
    for path in (labelled.image, labelled.nifti):
        assert path is not None
        found = in_order_of(labelled, slicer.volume(path, as_labels=as_labels))
        np.testing.assert_array_equal(found, labelled.mask)


def test_slicerio_finds_the_segments(labelled: Source) -> None:
    """It reads by pynrrd, which drops what is not ASCII from a header; 3D Slicer reads UTF-8 there, as it writes."""
    require_package("slicerio", "slicerio")
    import slicerio
    from tools import Opened

    found = slicerio.read_segmentation(str(labelled.image))
    opened = Opened(found["voxels"], np.asarray(found["ijkToLPS"]))
    np.testing.assert_array_equal(in_order_of(labelled, opened), labelled.mask)
    for segment, label in zip(found["segments"], labelled.labels, strict=True):
        name = label.name.encode("ascii", "ignore").decode().strip()
        assert (segment["name"], segment["labelValue"]) == (name, label.value)
        np.testing.assert_allclose(np.array(segment["color"]) * 255, label.rgb, atol=0.5)
        assert not label.code or segment["terminology"]["type"][:2] == ["SCT", label.code]
