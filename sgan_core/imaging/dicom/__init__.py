"""DICOM: series, their headers and pixels, segmentations."""

from sgan_core.imaging.dicom.search import find_series, is_dicom
from sgan_core.imaging.dicom.series import choose_series, read_series, series_table
from sgan_core.imaging.dicom.stacks import Series

__all__ = ["Series", "choose_series", "find_series", "is_dicom", "read_series", "series_table"]
