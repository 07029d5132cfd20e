"""Labels in the words of DICOM and 3D Slicer."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from sgan_core.cohort import Label

PRIVATE_SCHEME = "99SGAN"  # DICOM PS3.3 8.2: designators of private coding schemes begin with 99
_LESION = re.compile(  # as a word of its own; "_" parts words
    r"(?<![^\W_])(lesion|tumou?r|nodule|cyst|metastas[ei]s|neoplasm|cancer|carcinoma|melanoma|infarct)s?(?![^\W_])"
)


@dataclass(frozen=True)
class Code:
    """A term of a coding scheme (SCT: SNOMED CT)."""

    scheme: str
    value: str
    meaning: str  # as ``header_text`` gives it


def label_codes(label: Label) -> tuple[Code, Code]:
    """What a segment of this label is: its category and its type, as DICOM and 3D Slicer ask for.

    Category: a morphologically altered structure when the name speaks of a lesion, else an anatomical
    structure (with the codes of 3D Slicer's anatomy list). Type: ``label.code`` with the label's name for
    its meaning; where there is no SNOMED CT code, one of ``PRIVATE_SCHEME`` that only the name decides.
    """
    name = header_text(label.name) or f"label {label.value}"
    if _LESION.search(name.lower()):
        category = Code("SCT", "49755003", "Morphologically Altered Structure")
    else:
        category = Code("SCT", "123037004", "Anatomical Structure")
    if re.fullmatch("[0-9]{6,18}", label.code):  # SNOMED CT identifiers have 6 to 18 digits
        return category, Code("SCT", label.code, name)
    private = hashlib.sha256(name.lower().encode("utf-8")).hexdigest()[:12].upper()
    return category, Code(PRIVATE_SCHEME, private, name)


def slicer_terminology(label: Label) -> str:
    """3D Slicer's terminology entry: context, category, type, modifier, anatomic context, region, modifier."""
    category, kind = ("^".join((code.scheme, code.value, code.meaning)) for code in label_codes(label))
    context = "Segmentation category and type - 3D Slicer General Anatomy list"
    return "~".join((context, category, kind, "^^", "Anatomic codes - DICOM master list", "^^", "^^"))


def header_text(text: str) -> str:
    """Text for a field of a header: one line, at most 64 characters, no separator of DICOM or 3D Slicer."""
    return " ".join(re.sub(r"[\\^~|&\x00-\x1f\x7f]", " ", text).split())[:64].strip()
