"""What a segmentation remembers of the run that drew it, so that its review can be interrupted and taken up again.

It stands in attributes of the node, which the scene and its bundle (.mrb) keep.
"""

import json

from .volumes import drawnOn

_RUN, _CHECKED, _FRAME = "SemanticGAN.run", "SemanticGAN.checkedSlices", "SemanticGAN.frame"
_VOLUME = "SemanticGANVolume"  # role of the reference to the volume that was segmented; Slicer keeps it right on import
_NEEDED = ("seconds", "labels", "trust", "warnings")  # of the engine's record
_KEPT = ("model", "cardiothoracic_ratio", *_NEEDED)


def store(node, volume, case, labels, segmentIds, doubtful, frame=""):
    """Keep what the panel shows of a run on a volume; nothing is checked yet.

    doubtful: ``Result.doubtfulSlices``; frame: which one of a sequence it is, "": none.
    """
    kept = {name: case[name] for name in _KEPT if name in case} | {"doubtful": doubtful}
    node.SetAttribute(_RUN, json.dumps({"case": kept, "labels": labels, "segmentIds": segmentIds}))
    node.SetAttribute(_CHECKED, None)
    node.SetAttribute(_FRAME, frame or None)
    node.SetNodeReferenceID(_VOLUME, volume.GetID())


def frame(node):
    """The frame of a sequence that a segmentation was computed from, "" when of none, or not known."""
    return node.GetAttribute(_FRAME) or ""


def load(node):
    """(case, labels, segmentIds) of ``store``; None when the segmentation remembers no run, or one on another volume.

    A person may have given the segmentation to another volume since: trust and mL would speak of the wrong patient.
    """
    if node.GetNodeReference(_VOLUME) is not drawnOn(node):
        return None
    try:
        run = json.loads(node.GetAttribute(_RUN) or "")
        case, labels, segmentIds = run["case"], run["labels"], run["segmentIds"]
        case["doubtful"] = [(int(number), tuple(map(float, place))) for number, place in case["doubtful"]]
        complete = len(labels) == len(segmentIds) and all(name in case for name in _NEEDED)
    except (ValueError, KeyError, TypeError):  # none, or not written by us
        return None
    return (case, labels, segmentIds) if complete else None


def volume(node):
    """The volume whose run drew a segmentation; None when no run did, or the volume is gone."""
    return node.GetNodeReference(_VOLUME)


def checked(node):
    """Numbers of the slices that a person has looked at."""
    return {int(number) for number in (node.GetAttribute(_CHECKED) or "").split(",") if number.isdigit()}


def setChecked(node, numbers):
    """Keep the numbers of the slices that a person has looked at."""
    node.SetAttribute(_CHECKED, ",".join(map(str, sorted(numbers))) or None)


def memory(node):
    """All that is remembered, for ``remember``."""
    return {name: node.GetAttribute(name) for name in (_RUN, _CHECKED, _FRAME)}, node.GetNodeReferenceID(
        _VOLUME
    )


def remember(node, memory):
    """Put back what was remembered before."""
    attributes, volumeId = memory
    for name, value in attributes.items():
        node.SetAttribute(name, value)
    node.SetNodeReferenceID(_VOLUME, volumeId)
