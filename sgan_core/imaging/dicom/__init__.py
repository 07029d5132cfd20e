"""DICOM: series, their headers and pixels, segmentations."""

from sgan_core.imaging.dicom.series import (
    Series,
    choose_series,
    find_series,
    is_dicom,
    read_series,
    series_table,
)

__all__ = ["Series", "choose_series", "find_series", "is_dicom", "read_series", "series_table"]
