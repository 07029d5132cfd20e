"""The former place of ``sgan_core.imaging.dicom.seg``, for scripts that name it."""

from sgan_core.imaging.dicom.seg import read_dicom_seg, read_dicom_seg_labels, write_dicom_seg

__all__ = ["read_dicom_seg", "read_dicom_seg_labels", "write_dicom_seg"]
