"""The bundled model of skin lesions on test pictures that it never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sgan_core.bundle import Bundle, load_bundle
from sgan_core.imaging.readers import read_image
from sgan_core.labelling import SegmentConfig
from sgan_core.metrics.per_patient import jaccard_from_counts
from sgan_core.segment import segment_volume
from sgan_core.terms import terms_of


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle("skin-lesion")


def test_lesions_of_the_official_test_part(bundle: Bundle, shared: Path) -> None:
    """Every tenth picture: as good as in its card, but for chance."""
    folder = shared / "data" / "ISIC2017"
    found = []
    for picture in sorted((folder / "ISIC-2017_Test_v2_Data").glob("*.jpg"))[::10]:
        mask = folder / "ISIC-2017_Test_v2_Part1_GroundTruth" / f"{picture.stem}_segmentation.png"
        truth = np.asarray(Image.open(mask)) > 127
        result = segment_volume(read_image(picture), bundle, SegmentConfig("fast"))
        assert result.labels.shape == truth.shape
        assert result.trust.status == "review"  # nothing judges a student alone
        drawn = result.labels == 1
        found.append(jaccard_from_counts((drawn & truth).sum(), drawn.sum(), truth.sum()))
    assert len(found) >= 39
    assert np.mean(found) > 0.66
    assert np.mean([value < 0.5 for value in found]) < 0.3


def test_its_weights_may_ship(bundle: Bundle) -> None:
    terms = terms_of(bundle.facts)
    assert (terms.licence, terms.restriction) == ("CC0-1.0", "")
    assert [source.name for source in terms.sources] == ["isic2017"]
    assert bundle.inverter is None
    assert bundle.config.generator.image_channels == 3
