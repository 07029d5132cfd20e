"""What the user chose, kept in the scene."""

from typing import Annotated, Union

from slicer import vtkMRMLScalarVolumeNode, vtkMRMLSegmentationNode, vtkMRMLVectorVolumeNode
from slicer.parameterNodeWrapper import Choice, parameterNodeWrapper

DEVICES = ["auto", "cpu", "cuda", "mps"]
QUALITIES = ["fast", "standard", "careful"]
RECONSTRUCTIONS = ["auto", "paper", "mind", "map-mind"]
PIECES = ["auto", "largest", "all"]
FORMATS = ["nifti", "nrrd", "dicom-seg"]


@parameterNodeWrapper
class SemanticGANSlicerParameterNode:
    """The settings of the tabs Segment and Batch; words and meaning are those of ``sgan-segment --help``.

    inputVolume: a scalar volume, or a vector volume that is a colour picture.
    outputSegmentation: updated by a run; None makes a new one.
    model: name of a bundled model, or path of a model's folder or .zip; empty means the first of the list.
    regionFrom, regionTo: mm along S, as the red slice view shows them; used when regionEnabled.
    pieces: of each label, auto: as the model says.
    standardNames: segments are called as their codes are; show3D: with surfaces.
    batchInput, batchOutput: folders; batchFormat: of the label maps.
    """

    # None must be named, or Slicer refuses to write it.
    inputVolume: Union[vtkMRMLScalarVolumeNode, vtkMRMLVectorVolumeNode, None]  # noqa: UP007  (Slicer reads it)
    outputSegmentation: vtkMRMLSegmentationNode
    model: str = ""
    device: Annotated[str, Choice(DEVICES)] = "auto"
    quality: Annotated[str, Choice(QUALITIES)] = "standard"
    reconstruction: Annotated[str, Choice(RECONSTRUCTIONS)] = "auto"
    regionEnabled: bool = False
    regionFrom: float = 0.0
    regionTo: float = 0.0
    pieces: Annotated[str, Choice(PIECES)] = "auto"
    standardNames: bool = False
    show3D: bool = False
    batchInput: str = ""
    batchOutput: str = ""
    batchFormat: Annotated[str, Choice(FORMATS)] = "nifti"
