"""The cardiothoracic ratio of a frontal chest X-ray, measured on its label map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from sgan_core.cohort import Label

LEFT_LUNG, RIGHT_LUNG, HEART = "44029006", "3341006", "80891009"  # SNOMED CT; the patient's left and right
_PARTS = {LEFT_LUNG: "left lung", RIGHT_LUNG: "right lung", HEART: "heart"}

# Danzer 1919 set the limit; what is said of AP films: Chon et al., J Korean Med Sci 2011;26:1446.
HOW_TO_READ = (
    "A cardiothoracic ratio above 0.5 on a PA film is the usual sign of an enlarged heart; on AP and supine films the "
    "ratio comes out too large, and it is a measurement on the mask, not a diagnosis."
)

_ALIKE = 0.2  # area of the smaller lung in that of the larger; 0.49 or more in the 155 patients of Wingspan
_WHOLE = 0.9  # of a mask that must be in its largest piece, or it is said


@dataclass(frozen=True)
class Width:
    """How far a shape reaches horizontally, in pixels of the label map whose corners are at whole numbers.

    A row is the middle of the shape's pixels in its outermost column, counted from the upper edge.
    """

    left: int
    right: int
    left_row: float
    right_row: float

    @property
    def pixels(self) -> int:
        """The width."""
        return self.right - self.left


@dataclass(frozen=True)
class CardiothoracicRatio:
    """The ratio of the widths of heart and thorax, or why there is none."""

    ratio: float | None
    reason: str | None = None  # why there is none
    heart: Width | None = None
    thorax: Width | None = None
    remarks: tuple[str, ...] = ()  # what a reader of the ratio should know of the masks

    @property
    def warnings(self) -> tuple[str, ...]:
        """The remarks, and why there is no ratio."""
        return self.remarks if self.reason is None else (f"no cardiothoracic ratio: {self.reason}",)

    def record(self, trust: str) -> dict[str, Any]:
        """For run.json. trust: the status of the case, which stands beside the number wherever it is shown."""
        return {
            "ratio": None if self.ratio is None else round(self.ratio, 4),
            "reason": self.reason,
            "trust": trust,
            "heart": None if self.heart is None else asdict(self.heart),
            "thorax": None if self.thorax is None else asdict(self.thorax),
        }


def measures_chests(labels: Sequence[Label]) -> bool:
    """Whether a model with these labels draws what the ratio is measured on."""
    return _PARTS.keys() <= {label.code for label in labels}


def cardiothoracic_ratio(labelmap: np.ndarray, labels: Sequence[Label]) -> CardiothoracicRatio:
    """The greatest horizontal width of the heart over that of the lungs.

    labelmap: (H, W) label values, as the picture is stored: horizontal is along its rows, whatever a header says of
    the patient's orientation; which lung is on which side, and the size of a pixel, make no difference.
    labels: of the model, among them those that ``measures_chests`` asks for, known by their SNOMED CT codes.

    Danzer, The cardiothoracic ratio: an index of cardiac enlargement, Am J Med Sci 1919;157:513: the greatest distances
    of the right and the left border of the heart from the midline, added up, over the greatest internal diameter of
    the thorax. The midline drops out of the sum, so the heart's part is the horizontal distance of its outermost
    points, at whatever heights they are. The inner border of the ribs is where the lungs end, so the thorax is as wide
    as from the outermost point of one lung to that of the other. The published figures of Dong et al., MICCAI 2018,
    agree with this and not with other readings (benchmarks/cardiothoracic_ratio.py).

    Of each label only its largest connected piece counts (corners connect), so a false island sets no width; that more
    than a tenth of a mask lies elsewhere is a remark. There is no ratio, and a reason, when the heart or a lung is
    missing, when one touches the picture's border, behind which the thorax may go on, or when they do not lie as in a
    frontal view: lungs side by side, of sizes not too different, the heart between them and inside the thorax.
    """
    values = {label.code: label.value for label in labels}
    pieces, remarks = {}, []
    for code, name in _PARTS.items():
        pieces[code], share = _largest_piece(labelmap == values[code])
        if not share:
            return CardiothoracicRatio(None, f"no {name} was found")
        if share < _WHOLE:
            remarks.append(
                f"cardiothoracic ratio: {1 - share:.0%} of the mask of the {name} lies apart from its largest piece "
                "and does not count"
            )
    for code, name in _PARTS.items():
        if border := _touched_border(pieces[code]):
            return CardiothoracicRatio(
                None, f"the {name} reaches the {border} border of the picture, so the thorax is cut off"
            )
    heart = _width(pieces[HEART])
    thorax = _width(pieces[LEFT_LUNG] | pieces[RIGHT_LUNG])
    if reason := _not_frontal(pieces, heart, thorax):
        return CardiothoracicRatio(None, f"{reason}, so this is no plausible frontal view")
    return CardiothoracicRatio(heart.pixels / thorax.pixels, None, heart, thorax, tuple(remarks))


def ratio_text(record: dict[str, Any]) -> str:
    """A ratio for people, from what ``CardiothoracicRatio.record`` gives: never without the trust in it."""
    if record["ratio"] is None:
        return "none"  # why is among the warnings
    return f"{record['ratio']:.2f} (trust: {record['trust']})"


def bracket(width: Width) -> list[tuple[float, float]]:
    """A line to draw: from the outermost point on the left, level, to that on the right, as (x, y)."""
    level = (width.left_row + width.right_row) / 2
    return [
        (width.left, width.left_row),
        (width.left, level),
        (width.right, level),
        (width.right, width.right_row),
    ]


def _largest_piece(mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest connected piece of a mask (H, W), and its share of the mask's pixels, 0 for an empty one."""
    pieces, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    sizes = np.bincount(pieces.ravel())[1:]
    if not len(sizes):
        return mask, 0.0
    largest = int(sizes.argmax())
    return pieces == largest + 1, float(sizes[largest] / sizes.sum())


def _touched_border(mask: np.ndarray) -> str | None:
    edges = {"upper": mask[0], "lower": mask[-1], "left": mask[:, 0], "right": mask[:, -1]}
    return next((name for name, edge in edges.items() if edge.any()), None)


def _width(mask: np.ndarray) -> Width:
    columns = np.flatnonzero(mask.any(axis=0))
    left, right = int(columns[0]), int(columns[-1])
    rows = [float(np.flatnonzero(mask[:, column]).mean()) + 0.5 for column in (left, right)]
    return Width(left, right + 1, *rows)


def _not_frontal(pieces: dict[str, np.ndarray], heart: Width, thorax: Width) -> str | None:
    """What is wrong with the places and sizes of the three masks, if anything is."""
    areas = [np.count_nonzero(pieces[code]) for code in (LEFT_LUNG, RIGHT_LUNG)]
    if min(areas) < _ALIKE * max(areas):
        small = _PARTS[(LEFT_LUNG, RIGHT_LUNG)[int(np.argmin(areas))]]
        return f"the {small} is less than {_ALIKE:.0%} as large as the other lung"
    (left_row, left), (right_row, right), (_, middle) = (
        ndimage.center_of_mass(pieces[code]) for code in (LEFT_LUNG, RIGHT_LUNG, HEART)
    )
    if abs(left_row - right_row) >= abs(left - right):
        return "the lungs do not lie side by side"
    if not min(left, right) < middle < max(left, right):
        return "the heart does not lie between the lungs"
    if heart.left < thorax.left or heart.right > thorax.right:  # wider, or out at one side
        return "the heart reaches beyond the lungs"
    return None
