"""What can tell the volumes of one series apart, beside where its slices lie."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

from pydicom.dataset import Dataset

# Words of Image Type, Frame Type and Complex Image Component (PS3.3 C.8.3.1.1.1, C.8.13.3.1) that say what a slice
# shows, with what they are called. Vendors write the short ones.
_KINDS = {
    "M": "magnitude",
    "MAGNITUDE": "magnitude",
    "P": "phase",
    "PHASE": "phase",
    "PHASE MAP": "phase",
    "R": "real",
    "REAL": "real",
    "I": "imaginary",
    "IMAGINARY": "imaginary",
    "W": "water",
    "WATER": "water",
    "F": "fat",
    "FAT": "fat",
    "IP": "in phase",
    "IN_PHASE": "in phase",
    "OP": "out of phase",
    "OPP": "out of phase",
    "OUT_PHASE": "out of phase",
    "OPP_PHASE": "out of phase",
    "ADC": "ADC",
    "FA": "fractional anisotropy",
    "TRACEW": "trace",
    "MIP": "maximum projection",
}


@dataclass(frozen=True)
class Trait:
    """One thing in which slices of a series can differ."""

    name: str
    words: str  # of an entry in the table of series, {} is the value
    sources: tuple[
        tuple[str, str], ...
    ]  # functional group ("": none) and attribute, the first that is there counts
    apart: bool = False  # slices that differ in it are never one stack
    many: bool = (
        False  # numbers that a scan may also change from slice to slice: by itself no sign of two volumes
    )
    named: bool = False  # the value is a code or text of the device: entries are counted instead


TRAITS = (
    Trait("place", "frame of reference {}", (("", "FrameOfReferenceUID"),), apart=True, named=True),
    Trait("stack", "stack {}", (("FrameContentSequence", "StackID"),), apart=True, named=True),
    Trait(
        "echo",
        "echo {:.2f} ms",
        (("MREchoSequence", "EffectiveEchoTime"), ("MREchoSequence", "EchoTime"), ("", "EchoTime")),
        many=True,
    ),
    Trait("kind", "{}", (("", "ImageType"),)),
    Trait("component", "{}", (("", "ComplexImageComponent"),)),
    Trait(
        "time point",
        "time point {:g}",
        (("FrameContentSequence", "TemporalPositionIndex"), ("", "TemporalPositionIdentifier")),
    ),
    Trait("b-value", "b = {:g}", (("MRDiffusionSequence", "DiffusionBValue"), ("", "DiffusionBValue"))),
    Trait(
        "direction",
        "direction {}",
        (("", "DiffusionGradientOrientation"), ("MRDiffusionSequence", "DiffusionGradientDirectionSequence")),
        named=True,
    ),
    Trait(
        "acquisition",
        "acquisition {:g}",
        (("FrameContentSequence", "FrameAcquisitionNumber"), ("", "AcquisitionNumber")),
        many=True,
    ),
    Trait("contrast", "contrast {}", (("", "ContrastBolusAgent"),), named=True),
    Trait(
        "kernel", "kernel {}", (("CTReconstructionSequence", "ConvolutionKernel"), ("", "ConvolutionKernel"))
    ),
    Trait("voltage", "{:g} kV", (("CTXRayDetailsSequence", "KVP"), ("", "KVP"))),
    Trait(
        "inversion",
        "inversion time {:g} ms",
        (("MRModifierSequence", "InversionTimes"), ("", "InversionTime")),
    ),
    Trait(
        "flip angle",
        "flip angle {:g}",
        (("MRTimingAndRelatedParametersSequence", "FlipAngle"), ("", "FlipAngle")),
    ),
    Trait(
        "thickness",
        "{:g} mm thick",
        (("PixelMeasuresSequence", "SliceThickness"), ("", "SliceThickness")),
    ),
    Trait(
        "trigger",
        "trigger {:g} ms",
        (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"), ("", "TriggerTime")),
        many=True,
    ),
)
# Clocks: the n-th at each place is the n-th volume, where each place has as many.
CLOCKS = (
    (
        "heart phase",
        (("CardiacSynchronizationSequence", "NominalCardiacTriggerDelayTime"), ("", "TriggerTime")),
    ),
    ("time point", (("FrameContentSequence", "FrameAcquisitionDateTime"), ("", "AcquisitionTime"))),
    ("time point", (("", "ContentTime"),)),
)
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")

# The top-level attributes that the reader must ask for.
KEYWORDS = (
    *(keyword for trait in TRAITS for group, keyword in trait.sources if not group),
    *(keyword for _, sources in CLOCKS for group, keyword in sources if not group),
)


def traits_of(group: Callable[[str], Dataset], dataset: Dataset) -> dict[str, Hashable]:
    """The values of a slice's traits, without those that it lacks, and of its clocks as ``clock 0``, ...

    group: the data set of a functional group, empty where there is none. dataset: of the file.
    """
    found: dict[str, Hashable] = {}
    for trait in TRAITS:
        value = _first(trait.sources, group, dataset)
        if trait.name in ("kind", "component"):
            value = _kind(value, trait.name, group)
        if value is not None:
            found[trait.name] = value
    for number, (_, sources) in enumerate(CLOCKS):
        if (time := _first(sources, group, dataset)) is not None:
            found[f"clock {number}"] = time
    return found


def in_words(trait: Trait, value: Hashable, values: list[Hashable]) -> str:
    """What an entry is called. values: all that occur, in order."""
    if value is None:
        return f"without {trait.name}" if trait.name != "kind" else "other"
    if trait.name in ("kind", "component"):
        known = [_KINDS[word] for word in value if word in _KINDS] if isinstance(value, tuple) else []
        others = [other for other in values if other != value and isinstance(other, tuple)]
        alike = [other for other in others if [_KINDS[word] for word in other if word in _KINDS] == known]
        return known[0] if known and not alike else f"image type {values.index(value) + 1}"
    if trait.named or not isinstance(value, int | float):
        return trait.words.format(values.index(value) + 1).replace("{:g}", "{}")
    return trait.words.format(value)


def _kind(value: Hashable, name: str, group: Callable[[str], Dataset]) -> Hashable:
    """The words of an image type behind ORIGINAL or DERIVED and PRIMARY or SECONDARY."""
    for sequence in _FRAME_TYPES:
        macro = group(sequence)
        keyword = "FrameType" if name == "kind" else "ComplexImageComponent"
        if keyword in macro:
            value = _plain(macro.get(keyword))
    if value is None:
        return None
    words = value if isinstance(value, tuple) else (value,)
    return tuple(str(word).strip().upper() for word in words[2 if name == "kind" else 0 :]) or None


def _first(
    sources: tuple[tuple[str, str], ...], group: Callable[[str], Dataset], dataset: Dataset
) -> Hashable:
    for sequence, keyword in sources:
        holder = group(sequence) if sequence else dataset
        try:
            value = _plain(holder.get(keyword))
        except Exception:  # noqa: BLE001  pydicom raises nearly anything on garbage
            continue
        if value is not None:
            return value
    return None


def _plain(value: object) -> Hashable:
    """A number to 0.01, a text, or a tuple of these; None for nothing."""
    if value is None or value == "":
        return None
    if isinstance(value, Dataset):
        return tuple(_plain(element.value) for element in value)
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        return tuple(_plain(part) for part in value) or None
    try:
        return round(float(str(value)), 2)
    except ValueError:
        return str(value).strip() or None


def same_traits(first: Mapping[str, Hashable], second: Mapping[str, Hashable]) -> bool:
    """Whether nothing that is never one stack tells two slices apart."""
    return all(first.get(trait.name) == second.get(trait.name) for trait in TRAITS if trait.apart)
