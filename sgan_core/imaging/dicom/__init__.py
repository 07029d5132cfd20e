"""DICOM: series, their headers and pixels, segmentations."""
