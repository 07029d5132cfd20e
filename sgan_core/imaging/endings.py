"""What the name of a file says about its kind."""

from __future__ import annotations

from pathlib import Path

# The first of two files counts, as for .nhdr and .mhd: in a folder the pair is one image. Either may be named.
PAIR_SUFFIXES = {".hdr.gz": ".img.gz", ".hdr": ".img"}
NIFTI_SUFFIXES = (".nii.gz", ".nii", *PAIR_SUFFIXES)
ITK_SUFFIXES = (".nrrd", ".nhdr", ".mha", ".mhd")
VOLUME_SUFFIXES = NIFTI_SUFFIXES + ITK_SUFFIXES
VOXEL_SUFFIXES = tuple(PAIR_SUFFIXES.values())  # the second of two files, which may be named instead
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif")
DICOM_SUFFIXES = (".dcm", ".dicom", ".ima")  # usual, not needed: DICOM is known by its content


def image_suffix(path: str | Path) -> str:
    """The supported ending of a file name in lower case, e.g. ``.nii.gz``; ``""`` when it has none."""
    name = Path(path).name.lower()
    known = VOLUME_SUFFIXES + VOXEL_SUFFIXES + PICTURE_SUFFIXES + DICOM_SUFFIXES
    return next((suffix for suffix in known if name.endswith(suffix)), "")
