"""Names, colours and codes of what is labelled."""

from __future__ import annotations

from sgan_core.cohort import Label

# 3D Slicer's generic anatomy colours where it has one; SNOMED CT codes.
_STRUCTURES: dict[str, tuple[tuple[int, int, int], str]] = {
    "liver": ((221, 130, 101), "10200004"),
    "spleen": ((157, 108, 162), "78961009"),
    "kidney": ((185, 102, 83), "64033007"),
    "right kidney": ((185, 102, 83), "9846003"),
    "left kidney": ((185, 102, 83), "18639004"),
    "pancreas": ((249, 180, 111), "15776009"),
    "stomach": ((216, 132, 105), "69695003"),
    "gallbladder": ((139, 150, 98), "28231008"),
    "esophagus": ((211, 171, 143), "32849002"),
    "aorta": ((224, 97, 76), "15825003"),
    "inferior vena cava": ((0, 151, 206), "64131007"),
    "portal and splenic vein": ((0, 90, 220), "110765007"),  # another blue: it crosses the vena cava
    "right adrenal gland": ((249, 186, 150), "29392005"),
    "left adrenal gland": ((249, 186, 150), "12003004"),
    "heart": ((206, 110, 84), "80891009"),
    "lung": ((197, 165, 145), "39607008"),
    "right lung": ((197, 165, 145), "3341006"),
    "left lung": ((197, 165, 145), "44029006"),
    "skin lesion": ((165, 102, 70), "95324001"),
}
# Told apart by people who see few colours as well: Okabe and Ito, 2008, without black.
_PALETTE = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def named_label(value: int, name: str, stored_values: tuple[int, ...] = ()) -> Label:
    """A class with the colour and SNOMED CT code that its name is known by, else a colour of the palette.

    stored_values: what the label files hold for it, when not just ``value``.
    """
    known = _STRUCTURES.get(name.lower().replace("_", " "))
    rgb, code = known or (_PALETTE[(value - 1) % len(_PALETTE)], "")
    return Label(value, name, rgb, code, stored_values=() if stored_values == (value,) else stored_values)
