"""Fractions of tissue in every voxel, painted front to back."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.ndimage import gaussian_filter

from sgan_core.imaging.grid import Grid
from sgan_core.phantom.anatomy import (
    CAVITY_MM,
    LABELS,
    LIVER,
    Anatomy,
    Bounds,
    Bowel,
    Ellipsoid,
    smooth_max,
    smooth_min,
)

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z, canonical mm
Implicit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Tissues = dict[str, tuple[float, ...]]  # signal of each channel: (HU,) or (water, fat)

_VALUES = {label.name: label.value for label in LABELS}
# Grain of a tissue: standard deviation in HU, and as a share of the MR signal.
_MOTTLE = {
    "default": (2.5, 0.03),
    "fat": (5.0, 0.02),
    "faeces": (130.0, 0.3),
    "bowel_fluid": (12.0, 0.1),
    "bowel_contrast": (40.0, 0.1),
    "lung": (45.0, 0.5),
    "food": (25.0, 0.2),
    "marrow": (30.0, 0.08),
    "pancreas": (12.0, 0.08),
    "air": (0.0, 0.0),
    "gas": (10.0, 0.0),
}


class Canvas:
    """Voxels that are filled with tissue from front to back; what is painted first covers what follows."""

    def __init__(
        self, anatomy: Anatomy, grid: Grid, shift: np.ndarray, tissues: Tissues, rng: np.random.Generator
    ) -> None:
        self.tissues = tissues
        channels = len(tissues["air"])
        self.signal = np.zeros((channels, *grid.shape), np.float32)
        self.free = np.ones(grid.shape, np.float32)  # fraction of each voxel that is not painted yet
        self.mottle = gaussian_filter(rng.standard_normal(grid.shape, np.float32), (1.2, 1.2, 0.6))
        self.mottle /= self.mottle.std()
        self._fractions: dict[int, np.ndarray] = {}
        to_canonical = np.diag(1 / np.append(anatomy.scale, 1.0)) @ _translation(-shift) @ grid.affine
        self._to_voxel = np.linalg.inv(to_canonical)
        self._pad_mm = np.abs(anatomy.warp[:, :3]).sum(0) + 2.0
        self.points = _warped_points(grid.shape, to_canonical, anatomy.warp)

    def box(self, bounds: Bounds | None) -> tuple[slice, ...]:
        """Voxels that the canonical ``bounds`` can touch."""
        shape = self.free.shape
        if bounds is None:
            return tuple(slice(0, n) for n in shape)
        low, high = bounds[0] - self._pad_mm, bounds[1] + self._pad_mm
        corners = np.array(np.meshgrid(*zip(low, high, strict=True))).reshape(3, -1)
        voxels = self._to_voxel[:3, :3] @ corners + self._to_voxel[:3, 3:]
        start = np.clip(np.floor(voxels.min(1)).astype(int) - 1, 0, shape)
        stop = np.clip(np.ceil(voxels.max(1)).astype(int) + 2, 0, shape)
        return tuple(slice(int(a), int(b)) for a, b in zip(start, stop, strict=True))

    def cover(self, shape: Implicit, box: tuple[slice, ...]) -> np.ndarray:
        """Fraction of each voxel of ``box`` inside ``shape``, as if its surface were flat in a voxel."""
        x, y, z = self.points
        f = shape(x[box], y[box], z[box])
        across = np.full_like(f, 1e-3)  # change of f over one voxel
        for axis in range(3):
            if f.shape[axis] > 1:
                across += np.abs(_slope(f, axis))
        return np.clip(0.5 - f / across, 0.0, 1.0)

    def paint(
        self,
        shape: Implicit,
        tissue: str,
        *,
        bounds: Bounds | None = None,
        label: int = 0,
        within: np.ndarray | None = None,
    ) -> None:
        """Fill what is free of ``shape`` with ``tissue``; ``within`` (I, J, K) is a fraction to stay in."""
        box = self.box(bounds)
        if self.free[box].size == 0:
            return
        cover = self.cover(shape, box)
        if within is not None:
            cover = np.minimum(cover, within[box])
        self.fill(cover, tissue, box=box, label=label)

    def fill(self, cover: np.ndarray, tissue: str, *, box: tuple[slice, ...], label: int = 0) -> None:
        """Give ``tissue`` the fraction ``cover`` of what is free in the voxels of ``box``."""
        part = self.free[box] * cover
        self.free[box] -= part
        grain = _MOTTLE.get(tissue, _MOTTLE["default"])[0 if len(self.signal) == 1 else 1]
        for channel, value in zip(self.signal, self.tissues[tissue], strict=True):
            # CT varies by so many HU, MRI by a share of the signal.
            spread = grain if len(self.signal) == 1 else grain * value
            channel[box] += part * (value + spread * self.mottle[box])
        if label:
            self._fractions.setdefault(label, np.zeros_like(self.free))[box] += part

    def labels(self) -> np.ndarray:
        """The tissue that fills at least half of each voxel, (I, J, K) uint8."""
        labels = np.zeros(self.free.shape, np.uint8)
        for value, fraction in self._fractions.items():
            labels[fraction >= 0.5] = value
        return labels


def _translation(offset: np.ndarray) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, 3] = offset
    return matrix


def _warped_points(shape: tuple[int, int, int], to_canonical: np.ndarray, warp: np.ndarray) -> Points:
    """Canonical coordinates of every voxel centre, bent by the patient's warp."""
    m = to_canonical.astype(np.float32)
    i, j, k = np.ogrid[: shape[0], : shape[1], : shape[2]]
    i, j, k = i.astype(np.float32), j.astype(np.float32), k.astype(np.float32)
    straight = [m[r, 0] * i + m[r, 1] * j + m[r, 2] * k + m[r, 3] for r in range(3)]
    bent = [axis.copy() for axis in straight]
    for wave in warp.astype(np.float32):
        x, y, z = straight
        height = np.sin(wave[3] * x + wave[4] * y + wave[5] * z + wave[6])
        for axis in range(3):
            bent[axis] += wave[axis] * height
    return bent[0], bent[1], bent[2]


def _slope(f: np.ndarray, axis: int) -> np.ndarray:
    """Central difference along ``axis``, one-sided at the ends, per voxel."""
    f = np.moveaxis(f, axis, 0)
    slope = np.empty_like(f)
    slope[1:-1] = 0.5 * (f[2:] - f[:-2])
    slope[0], slope[-1] = f[1] - f[0], f[-1] - f[-2]
    return np.moveaxis(slope, 0, axis)


def _union(parts: tuple[Ellipsoid, ...], blend_mm: float, points: Points) -> np.ndarray:
    f = parts[0](*points)
    for part in parts[1:]:
        f = smooth_min(f, part(*points), blend_mm)
    return f


def _bounds_of(parts: tuple[Ellipsoid, ...]) -> Bounds:
    corners = [part.bounds() for part in parts]
    return np.min([c[0] for c in corners], axis=0) - 8.0, np.max([c[1] for c in corners], axis=0) + 8.0


def _muscle_mm(a: Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Thickness of the muscular wall, more beside the spine."""
    return a.muscle_mm + 13.0 * np.exp(-((x / 85.0) ** 4)) / (1.0 + np.exp((y + 30.0) / 12.0))


def _cavity(x: np.ndarray, y: np.ndarray, power: float) -> np.ndarray:
    """Radial distance in canonical mm to the inner surface of the abdominal wall."""
    rho = (np.abs(x / CAVITY_MM[0]) ** power + np.abs(y / CAVITY_MM[1]) ** power + 1e-6) ** (1 / power)
    return np.sqrt(x * x + y * y) * (1 - 1 / rho)


def paint_patient(canvas: Canvas, a: Anatomy) -> None:
    """All tissues, front to back."""
    x, y, _ = canvas.points
    cavity = _cavity(x, y, a.wall_power)
    diaphragm = _union(a.domes, 30.0, canvas.points)
    diaphragm = smooth_min(diaphragm, canvas.points[2] + 78.0, 12.0)
    below = np.maximum(cavity + 1.2, diaphragm + 0.8)  # where abdominal organs may lie
    _paint_spine(canvas, a, cavity)
    _paint_ribs(canvas, a, cavity)
    _paint_great_vessels(canvas, a)
    for kidney, name in zip(a.kidneys, ("right kidney", "left kidney"), strict=True):
        _paint_kidney(canvas, kidney, _VALUES[name])
    if a.gallbladder is not None:
        bounds = a.gallbladder.bounds()
        canvas.paint(a.gallbladder, "bile", bounds=bounds, label=_VALUES["gallbladder"])
    _paint_liver(canvas, a, below)
    _paint_spleen(canvas, a, below)
    for tube in a.pancreas:
        canvas.paint(tube, "pancreas", bounds=tube.bounds(), label=_VALUES["pancreas"])
    _paint_stomach(canvas, a, below)
    chambers = Ellipsoid(a.heart.centre, a.heart.radii - 9.0, a.heart.axes)
    above = canvas.cover(lambda *_: 1.5 - diaphragm, canvas.box(None))
    canvas.paint(chambers, "heart", bounds=chambers.bounds(), within=above)
    canvas.paint(a.heart, "muscle", bounds=a.heart.bounds(), within=above)
    inside = canvas.cover(lambda *_: below, canvas.box(None))
    for loop in a.bowel:
        _paint_bowel(canvas, loop, inside)
    _paint_back_muscles(canvas, a, cavity)
    _paint_wall(canvas, a, cavity, diaphragm)


def _paint_spine(canvas: Canvas, a: Anatomy, cavity: np.ndarray) -> None:
    """Vertebrae and discs, the canal, arches with their processes."""
    pitch = 32.0
    x, y, _ = canvas.points
    within = canvas.cover(lambda *_: cavity - _muscle_mm(a, x, y), canvas.box(None))

    def centre_y(z: np.ndarray) -> np.ndarray:
        return a.spine_y + a.spine_bow * np.sin((z + 110.0) / 60.0)

    def level(z: np.ndarray) -> np.ndarray:
        """Distance along z to the middle of the nearest vertebra."""
        phase = z / pitch + a.vertebra_phase
        return (phase - np.round(phase)) * pitch

    def tube(x: np.ndarray, y: np.ndarray, rx: float, ry: float) -> np.ndarray:
        return (np.sqrt((x / rx) ** 2 + (y / ry) ** 2) - 1.0) * min(rx, ry)

    def body(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        waist = 1.5 * np.cos(level(z) * (2 * np.pi / pitch))
        return tube(x, y - centre_y(z), 22.0, 16.5) + waist

    def vertebra(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(body(x, y, z), np.abs(level(z)) - 12.0)

    def canal(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return tube(x, y - centre_y(z) + 24.0, 10.5, 8.0)

    def arch(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        y, dz = y - centre_y(z) + 24.0, np.abs(level(z))
        ring = np.maximum(tube(x, y + 1.0, 16.0, 13.5), dz - 13.0)
        spinous = np.maximum(tube(x, y + 24.0, 4.0, 18.0), dz - 9.0)
        transverse = np.maximum(tube(x, y + 0.18 * np.abs(x) - 2.0, 40.0, 4.5), dz - 5.5)
        return np.minimum(np.minimum(ring, spinous), transverse)

    low, high = a.spine_y - a.spine_bow - 70.0, a.spine_y + a.spine_bow + 20.0
    bounds = (np.array([-44.0, low, -400.0]), np.array([44.0, high, 200.0]))
    canvas.paint(canal, "canal", bounds=bounds)
    canvas.paint(lambda *p: vertebra(*p) + 2.2, "marrow", bounds=bounds)
    canvas.paint(vertebra, "cortical_bone", bounds=bounds)
    canvas.paint(body, "disc", bounds=bounds)
    canvas.paint(lambda *p: arch(*p) + 2.0, "marrow", bounds=bounds, within=within)
    canvas.paint(arch, "cortical_bone", bounds=bounds, within=within)


def _paint_ribs(canvas: Canvas, a: Anatomy, cavity: np.ndarray) -> None:
    """Slanted rings in the wall above the costal margin."""
    x, y, z = canvas.points
    forward = np.arctan2(np.abs(x), -y)  # 0 at the back, pi in front
    phase = (z + 46.0 * forward) / 30.0 + a.rib_phase
    gap = (phase - np.round(phase)) * 30.0
    rib = np.sqrt((1.4 * (cavity - 0.45 * a.muscle_mm)) ** 2 + gap * gap) - 6.0
    margin = -150.0 + 42.0 * np.maximum(forward - 0.9, 0.0)  # the costal arch rises to the front
    rib = np.maximum(rib, np.maximum(margin - z, 0.33 - forward) * np.float32(1.0))
    everywhere = canvas.box(None)
    canvas.fill(canvas.cover(lambda *_: rib + 2.2, everywhere), "marrow", box=everywhere)
    canvas.fill(canvas.cover(lambda *_: rib, everywhere), "cortical_bone", box=everywhere)


def _paint_great_vessels(canvas: Canvas, a: Anatomy) -> None:
    front = a.spine_y + 17.0 + a.vessel_radius

    def vessel(x0: float, y0: float, rx: float, ry: float, swing: float) -> Implicit:
        def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
            y = y - y0 - a.spine_bow * np.sin((z + 110.0) / 60.0)
            y = y - swing * np.clip((z + 80.0) / 60.0, 0.0, 1.0)
            return (np.sqrt(((x - x0) / rx) ** 2 + (y / ry) ** 2) - 1.0) * min(rx, ry)

        return shape

    def column(x0: float) -> Bounds:
        return np.array([x0 - 18.0, -90.0, -400.0]), np.array([x0 + 18.0, 40.0, 200.0])

    r = a.vessel_radius
    canvas.paint(vessel(-11.0, front, r, r, -6.0), "aorta", bounds=column(-11.0), label=_VALUES["aorta"])
    canvas.paint(
        vessel(20.0, front + 1.0, 1.25 * r, 0.85 * r, 8.0),
        "cava",
        bounds=column(20.0),
        label=_VALUES["inferior vena cava"],
    )


def _paint_kidney(canvas: Canvas, kidney: Ellipsoid, label: int) -> None:
    """Cortex, medulla, and sinus fat that opens to the middle."""
    side = np.sign(kidney.centre[0])
    hilum = kidney.centre + np.array([-side * 0.75, 0.35, 0.0]) * kidney.radii
    sinus = Ellipsoid(hilum, kidney.radii * (0.7, 0.42, 0.45), kidney.axes)
    pelvis = Ellipsoid(hilum, kidney.radii * (0.45, 0.2, 0.25), kidney.axes)
    medulla = Ellipsoid(kidney.centre, kidney.radii * (0.72, 0.7, 0.82), kidney.axes)
    bounds = kidney.bounds()
    inside = np.zeros_like(canvas.free)
    box = canvas.box(bounds)
    if inside[box].size == 0:
        return
    inside[box] = canvas.cover(kidney, box)
    canvas.paint(pelvis, "urine", bounds=bounds, within=inside)
    canvas.paint(sinus, "fat", bounds=bounds, within=inside)
    canvas.paint(medulla, "medulla", bounds=bounds, label=label)
    canvas.paint(kidney, "cortex", bounds=bounds, label=label)


def _paint_liver(canvas: Canvas, a: Anatomy, below: np.ndarray) -> None:
    """Parenchyma; its vessels and lesions count as liver."""
    box = canvas.box(_bounds_of(a.liver))
    if canvas.free[box].size == 0:
        return

    def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        f = _union(a.liver, 22.0, (x, y, z))
        for cut in a.liver_cuts:
            f = smooth_max(f, -cut(x, y, z), 12.0)
        return smooth_max(f, below[box], 6.0)

    inside = np.zeros_like(canvas.free)
    inside[box] = canvas.cover(shape, box)
    for lesion in a.lesions:
        canvas.paint(lesion, "lesion", bounds=lesion.bounds(), label=LIVER, within=inside)
    for tissue, tubes in (("hepatic_vein", a.hepatic_vessels), ("portal_vein", a.portal_vessels)):
        for tube in tubes:
            canvas.paint(tube, tissue, bounds=tube.bounds(), label=LIVER, within=inside)
    canvas.fill(inside[box], "liver", box=box, label=LIVER)


def _paint_spleen(canvas: Canvas, a: Anatomy, below: np.ndarray) -> None:
    bounds = _bounds_of(a.spleen)
    box = canvas.box(bounds)

    def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        f = _union(a.spleen, 15.0, (x, y, z))
        bed = a.stomach[0](x, y, z) - 3.0
        return smooth_max(smooth_max(f, -bed, 6.0), below[box], 5.0)

    canvas.paint(shape, "spleen", bounds=bounds, label=_VALUES["spleen"])


def _paint_stomach(canvas: Canvas, a: Anatomy, below: np.ndarray) -> None:
    bounds, label = _bounds_of(a.stomach), _VALUES["stomach"]
    box = canvas.box(bounds)

    def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return smooth_max(_union(a.stomach, 18.0, (x, y, z)), below[box], 5.0)

    def gas(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(shape(x, y, z) + 4.0, a.stomach_gas_level - y)

    canvas.paint(gas, "gas", bounds=bounds, label=label)
    canvas.paint(lambda *p: shape(*p) + 4.0, "food", bounds=bounds, label=label)
    canvas.paint(shape, "bowel_wall", bounds=bounds, label=label)


def _paint_bowel(canvas: Canvas, loop: Bowel, inside: np.ndarray) -> None:
    lumen, bounds = loop.tube.shrunk(loop.wall_mm), loop.tube.bounds()

    def gas(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(lumen(x, y, z), loop.gas_level - y)

    if loop.gas_level < bounds[1][1]:
        canvas.paint(gas, "gas", bounds=bounds, within=inside)
    canvas.paint(lumen, loop.content, bounds=bounds, within=inside)
    canvas.paint(loop.tube, "bowel_wall", bounds=bounds, within=inside)


def _paint_back_muscles(canvas: Canvas, a: Anatomy, cavity: np.ndarray) -> None:
    """Psoas beside the lumbar spine, the erector spinae behind it."""
    x, y, _ = canvas.points
    within = canvas.cover(lambda *_: cavity - _muscle_mm(a, x, y), canvas.box(None))
    no_turn = np.eye(3)
    for side in (-1.0, 1.0):
        centre = np.array([side * 36.0, a.spine_y - 2.0, -215.0])
        psoas = Ellipsoid(centre, np.array([20.0, 20.0, 120.0]), no_turn)
        canvas.paint(psoas, "muscle", bounds=psoas.bounds())
        centre = np.array([side * 30.0, a.spine_y - 36.0, -100.0])
        spinae = Ellipsoid(centre, np.array([28.0, 21.0, 900.0]), no_turn)
        canvas.paint(spinae, "muscle", bounds=spinae.bounds(), within=within)


def _paint_wall(canvas: Canvas, a: Anatomy, cavity: np.ndarray, diaphragm: np.ndarray) -> None:
    """Lungs above the diaphragm, fat below it, then the wall from inside out."""
    x, y, _ = canvas.points
    everywhere = canvas.box(None)
    angle = np.arctan2(y, x)
    fat_mm = a.fat_mm * (1.0 - 0.25 * np.cos(2 * angle) + 0.2 * np.sin(angle))
    mediastinum = np.abs(x + 6.0) - 20.0 + 0.006 * np.maximum(y + 25.0, 0.0) ** 1.7
    lung = np.maximum(np.maximum(cavity + 1.0, -diaphragm), -mediastinum)
    muscle = cavity - _muscle_mm(a, x, y)
    skin = muscle - fat_mm
    layers = [
        (lung, "lung"),
        (np.maximum(cavity + 0.5, np.abs(diaphragm) - 1.5), "muscle"),
        (cavity, "fat"),
        (muscle, "muscle"),
        (skin + 2.0, "fat"),
        (skin, "skin"),
    ]
    for f, tissue in layers:
        canvas.fill(canvas.cover(lambda *_, f=f: f, everywhere), tissue, box=everywhere)
    canvas.fill(np.ones_like(cavity), "air", box=everywhere)


def paint_table(canvas: Canvas, a: Anatomy, rng: np.random.Generator) -> None:
    """A thin curved shell just below the back; it replaces air."""
    x, y, _ = canvas.points
    back = -CAVITY_MM[1] - a.muscle_mm - 13.0 - 1.2 * a.fat_mm
    shell = np.abs(y - back + rng.uniform(4, 12) - (x / rng.uniform(22, 34)) ** 2) - 2.4
    shell = np.maximum(shell, np.abs(x) - 190.0)
    skin_free = np.clip((-850.0 - canvas.signal[0]) / 150.0, 0.0, 1.0)
    cover = canvas.cover(lambda *_: shell, canvas.box(None)) * skin_free
    canvas.signal[0] += cover * rng.uniform(700, 1050)
