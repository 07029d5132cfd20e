"""A seeded procedural abdomen: CT and T1 in-phase / out-of-phase MRI of one anatomy, with its true labels.

Organs are implicit functions (negative inside) in a canonical patient frame: x to the patient's right, y to
anterior, z to superior, in mm, the liver dome near z = 0, the abdominal cavity 250 x 170 mm. A patient is
this frame stretched, warped and redrawn from the seed. Tissues are painted front to back as fractions of a
voxel, so partial volume, and with it the india-ink border of out-of-phase MRI, comes from the mixture and
not from a drawn line.

Seeds: below ``TEST_SEEDS`` are patients for training and validation, from there on demo and test patients.
Of the latter, the odd seeds are a held-out family of liver shapes (a left lobe that reaches the spleen, or a
Riedel lobe) that no training seed draws.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from sgan_core.cohort import Case, Cohort, Intensity, Label
from sgan_core.errors import InputError
from sgan_core.imaging.grid import Grid
from sgan_core.imaging.image import Volume

DOMAINS = ("ct", "t1_in", "t1_out")
TEST_SEEDS = 1_000_000
LIVER = 1  # the value of the liver in every phantom label map
LABELS = (
    Label(LIVER, "liver", (221, 130, 101), "10200004"),
    Label(2, "spleen", (157, 108, 162), "78961009"),
    Label(3, "right kidney", (185, 102, 83), "9846003"),
    Label(4, "left kidney", (185, 102, 83), "18639004"),
    Label(5, "aorta", (224, 97, 76), "15825003"),
    Label(6, "inferior vena cava", (0, 151, 206), "64131007"),
    Label(7, "stomach", (216, 132, 105), "69695003"),
    Label(8, "gallbladder", (139, 150, 98), "28231008"),
    Label(9, "pancreas", (249, 180, 111), "15776009"),
)
_VALUES = {label.name: label.value for label in LABELS}

_CAVITY_MM = (125.0, 85.0)  # canonical half axes, right-left and anterior-posterior
_SHAPE, _CT, _MR, _NOISE_IN, _NOISE_OUT = range(5)  # streams of random numbers of one patient

Points = tuple[np.ndarray, np.ndarray, np.ndarray]  # x, y, z, canonical mm
Implicit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
Bounds = tuple[np.ndarray, np.ndarray]  # lower and upper corner, canonical mm
Tissues = dict[str, tuple[float, ...]]  # signal of each channel: (HU,) or (water, fat)


@dataclass(frozen=True, eq=False)
class PhantomCase:
    """One scan of one phantom patient and the truth about it."""

    image: Volume  # int16: HU, or arbitrary units >= 0 for MRI
    labels: np.ndarray  # (I, J, K) uint8 on the image's grid: 0 background, 1 liver, else as in LABELS


def make_case(seed: int, domain: str) -> PhantomCase:
    """Scan phantom patient ``seed`` in ``domain``, one of DOMAINS.

    The same seed is the same anatomy in every domain; CT and MRI each have their own grid and positioning,
    the two MRI echoes share theirs. The same arguments give the same voxels. Raises InputError for an unknown
    domain or a negative seed.
    """
    if domain not in DOMAINS:
        raise InputError(f"phantom domain {domain!r} is unknown; choose one of {', '.join(DOMAINS)}.")
    if seed < 0:
        raise InputError(f"phantom seed {seed} is negative; use 0 or more.")
    anatomy = _draw_anatomy(seed)
    rng = _stream(seed, _CT if domain == "ct" else _MR)
    if domain == "ct":
        grid, shift = _ct_grid(anatomy, rng)
        canvas = _Canvas(anatomy, grid, shift, _ct_tissues(rng), rng)
        _paint_patient(canvas, anatomy)
        if rng.random() < 0.6:
            _paint_table(canvas, anatomy, rng)
        array = _ct_image(canvas, rng)
    else:
        grid, shift = _mr_grid(anatomy, rng)
        field = _draw_mr(rng, out_of_phase=domain == "t1_out")
        canvas = _Canvas(anatomy, grid, shift, field.tissues, rng)
        _paint_patient(canvas, anatomy)
        noise = _stream(seed, _NOISE_OUT if domain == "t1_out" else _NOISE_IN)
        array = _mr_image(canvas, field, rng, noise)
    return PhantomCase(Volume(array, grid), canvas.labels())


def read_phantom(reference: str) -> PhantomCase:
    """Make the case that ``phantom:DOMAIN:SEED`` names. Raises InputError when the reference is malformed."""
    match = re.fullmatch(r"phantom:([a-z0-9_]+):(\d{1,18})", reference)
    if match is None:
        raise InputError(f"{reference}: not a phantom; write phantom:DOMAIN:SEED, e.g. phantom:ct:7.")
    return make_case(int(match[2]), match[1])


def phantom_cohort(
    *, patients: int = 400, labelled: int = 8, validation: int = 8, test: int = 0, domain: str = "ct"
) -> Cohort:
    """List phantom patients as a cohort: ``patients`` for training, then ``validation``, then ``test`` ones.

    The first ``labelled`` training patients, and all validation and test patients, have labels. A label
    reference names the full label map: keep value 1 (the liver) of it. Training seeds start at 0, validation
    seeds follow, test seeds start at TEST_SEEDS. Raises InputError when ``labelled`` exceeds ``patients``.
    """
    if domain not in DOMAINS:
        raise InputError(f"phantom domain {domain!r} is unknown; choose one of {', '.join(DOMAINS)}.")
    if not 0 <= labelled <= patients:
        raise InputError(f"{labelled} labelled of {patients} phantom patients; ask for at most {patients}.")
    seeds = [(seed, "train") for seed in range(patients)]
    seeds += [(patients + n, "validation") for n in range(validation)]
    seeds += [(TEST_SEEDS + n, "test") for n in range(test)]
    if domain == "ct":
        modality, intensity = "ct", Intensity(low=-160.0, high=240.0, unit="HU")
    else:
        modality, intensity = "mr", Intensity(percentiles=(1.0, 99.0))
    return Cohort(
        name="phantom",
        modality=modality,
        intensity=intensity,
        labels=tuple(label for label in LABELS if label.value == LIVER),
        cases=tuple(_cohort_case(seed, split, domain, labelled) for seed, split in seeds),
    )


def _cohort_case(seed: int, split: str, domain: str, labelled: int) -> Case:
    reference = f"phantom:{domain}:{seed}"
    has_label = split != "train" or seed < labelled
    return Case(
        id=f"phantom-{seed:07d}-{domain}",
        patient=f"phantom-{seed:07d}",
        image=reference,
        label=reference if has_label else None,
        split=split,
        domain=domain,
        labelled_rank=seed if split == "train" and has_label else None,
    )


def _stream(seed: int, key: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,)))


# --- implicit shapes: x, y, z in canonical mm -> about the distance to the surface, negative inside ---


def _smooth_min(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    h = np.maximum(blend_mm - np.abs(a - b), 0.0)
    return np.minimum(a, b) - h * h * (0.25 / blend_mm)


def _smooth_max(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    return -_smooth_min(-a, -b, blend_mm)


@dataclass(frozen=True, eq=False)
class _Ellipsoid:
    centre: np.ndarray  # (3,)
    radii: np.ndarray  # (3,)
    axes: np.ndarray  # (3, 3), rows are the directions of the radii

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        x, y, z = x - self.centre[0], y - self.centre[1], z - self.centre[2]
        square = np.zeros_like(x)
        for axis in (self.axes / self.radii[:, None]).astype(np.float32):
            along = axis[0] * x + axis[1] * y + axis[2] * z
            square += along * along
        return np.asarray((np.sqrt(square) - 1.0) * np.float32(self.radii.min()))

    def bounds(self) -> Bounds:
        half = np.sqrt(((self.axes * self.radii[:, None]) ** 2).sum(0))
        return self.centre - half, self.centre + half


@dataclass(frozen=True, eq=False)
class _Capsule:
    """A tube between two points whose radius changes linearly: vessels and bowel."""

    start: np.ndarray  # (3,)
    end: np.ndarray  # (3,)
    radii: tuple[float, float]

    def __call__(self, x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        d = (self.end - self.start).astype(np.float32)
        x, y, z = x - self.start[0], y - self.start[1], z - self.start[2]
        t = np.clip((x * d[0] + y * d[1] + z * d[2]) / float(d @ d), 0.0, 1.0)
        gap = np.sqrt((x - t * d[0]) ** 2 + (y - t * d[1]) ** 2 + (z - t * d[2]) ** 2)
        return gap - (self.radii[0] + t * (self.radii[1] - self.radii[0]))

    def bounds(self) -> Bounds:
        ends = np.stack([self.start, self.end])
        return ends.min(0) - max(self.radii), ends.max(0) + max(self.radii)

    def shrunk(self, wall_mm: float) -> _Capsule:
        return _Capsule(self.start, self.end, (self.radii[0] - wall_mm, self.radii[1] - wall_mm))


def _rotation(degrees: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z, (3, 3)."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


# --- anatomy: everything that the seed decides about the patient ---


@dataclass(frozen=True, eq=False)
class _Bowel:
    tube: _Capsule
    content: str  # tissue
    wall_mm: float
    gas_level: float  # canonical y above which the lumen holds gas (the patient lies on the back)


@dataclass(frozen=True, eq=False)
class _Anatomy:
    scale: np.ndarray  # (3,) patient mm per canonical mm
    warp: np.ndarray  # (waves, 7): displacement (3,) mm, wave vector (3,) rad/mm, phase
    wall_power: float  # exponent of the superellipse of the cavity
    muscle_mm: float
    fat_mm: float
    liver: tuple[_Ellipsoid, ...]
    liver_cuts: tuple[_Ellipsoid, ...]
    liver_bottom: float  # canonical z
    hepatic_vessels: tuple[_Capsule, ...]
    portal_vessels: tuple[_Capsule, ...]
    lesions: tuple[_Ellipsoid, ...]
    gallbladder: _Ellipsoid | None
    spleen: tuple[_Ellipsoid, ...]
    kidneys: tuple[_Ellipsoid, _Ellipsoid]  # right, left
    stomach: tuple[_Ellipsoid, ...]
    stomach_gas_level: float
    pancreas: tuple[_Capsule, ...]
    bowel: tuple[_Bowel, ...]
    heart: _Ellipsoid
    domes: tuple[_Ellipsoid, ...]
    spine_y: float
    spine_bow: float
    vertebra_phase: float
    rib_phase: float
    vessel_radius: float


def _draw_anatomy(seed: int) -> _Anatomy:
    rng = _stream(seed, _SHAPE)
    u = rng.uniform

    def ellipsoid(
        centre: tuple, radii: tuple | np.ndarray, *, turn: tuple = (0, 0, 0), jitter: float = 6.0
    ) -> _Ellipsoid:
        return _Ellipsoid(
            np.array(centre) + np.clip(rng.normal(0, jitter, 3), -2 * jitter, 2 * jitter),
            np.array(radii) * u(0.87, 1.13, 3),
            _rotation(np.array(turn) + rng.normal(0, 7, 3)),
        )

    # The held-out family reaches where no training patient does.
    held_out = seed >= TEST_SEEDS and seed % 2 == 1
    long_left = held_out and rng.random() < 0.5
    reach = u(1.25, 1.5) if long_left else u(0.55, 1.1)
    riedel = u(0.85, 1.2) if held_out and not long_left else max(0.0, u(-0.3, 0.6))
    size = u(0.86, 1.1)
    bottom = -118.0 * size - 45.0 * riedel
    tip = ellipsoid((90, -12, bottom + 48), (32 + 6 * riedel, 46, 48), jitter=4)
    tip = _Ellipsoid(np.array([tip.centre[0], tip.centre[1], bottom + 48]), tip.radii, tip.axes)
    liver = (
        ellipsoid((62, -4, -56), (75 * size, 90 * size, 70 * size)),
        ellipsoid((26, 34, -52), (44 * size, 44 * size, 42 * size)),
        ellipsoid((2 - 10 * reach, 44, -48), (62 * reach, 32, 30 * size), turn=(0, -14, 12)),
        tip,
    )
    cuts = (
        ellipsoid((-2, -30, -112), (58 * u(0.85, 1.1), 62, 62), turn=(0, 20, 0)),  # visceral surface
        ellipsoid((10, 66, -84), (4.0, 26, 26), turn=(0, 0, 8), jitter=4),  # fissure of the round ligament
        ellipsoid((-75, -50, -40), (62, 62, 70), jitter=4),  # stomach bed
    )
    hepatic, portal = _draw_liver_vessels(rng)
    lesions = tuple(
        ellipsoid((55, 0, -60), (r, r, r), jitter=26)
        for r in u(4, 15, rng.integers(1, 4) if rng.random() < 0.3 else 0)
    )
    return _Anatomy(
        scale=np.array([u(0.92, 1.14), u(0.9, 1.16), u(0.9, 1.1)]),
        warp=_draw_warp(rng),
        wall_power=u(2.0, 2.6),
        muscle_mm=u(8, 15),
        fat_mm=u(6, 18) if rng.random() < 0.6 else u(18, 34),
        liver=liver,
        liver_cuts=cuts,
        liver_bottom=bottom,
        hepatic_vessels=hepatic,
        portal_vessels=portal,
        lesions=lesions,
        gallbladder=(
            ellipsoid((42, 46, -104 * size), (13, 15, 26), turn=(25, 0, 0)) if rng.random() < 0.85 else None
        ),
        spleen=(
            ellipsoid((-92, -34, -62), np.array((25, 44, 44)) * u(0.85, 1.2), turn=(10, 8, -20)),
            ellipsoid((-82, -52, -50), np.array((24, 28, 32)) * u(0.85, 1.2), turn=(10, 0, -35)),
        ),
        kidneys=(
            ellipsoid((60, -42, -142), (26, 23, 50), turn=(12, -10, 35), jitter=6),
            ellipsoid((-60, -42, -126), (26, 23, 52), turn=(12, 10, -35), jitter=6),
        ),
        stomach=(
            ellipsoid((-55, -8, -46), np.array((34, 34, 36)) * u(0.75, 1.1)),
            ellipsoid((-52, 28, -76), np.array((28, 30, 38)) * u(0.7, 1.1), turn=(20, 0, 0)),
            ellipsoid((-14, 46, -100), np.array((38, 20, 20)) * u(0.7, 1.1), turn=(0, -20, 0)),
        ),
        stomach_gas_level=u(5, 50),
        pancreas=_draw_pancreas(rng),
        bowel=_draw_bowel(rng),
        heart=ellipsoid((-24, 26, 8), (60, 46, 40), turn=(0, 10, 25)),
        domes=(
            ellipsoid((58, 0, -100), (76, 94, 100), jitter=3),
            ellipsoid((-62, 0, -112), (72, 92, 98), jitter=3),
            ellipsoid((0, 22, -122), (82, 82, 92), jitter=3),
        ),
        spine_y=u(-62, -52),
        spine_bow=u(0, 9),
        vertebra_phase=u(0, 1),
        rib_phase=u(0, 1),
        vessel_radius=u(8.5, 12),
    )


def _draw_warp(rng: np.random.Generator, waves: int = 4) -> np.ndarray:
    """Long sine waves that bend the whole patient by a few mm."""
    direction = rng.normal(size=(waves, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    wave_vector = direction * (2 * np.pi / rng.uniform(110, 240, (waves, 1)))
    displacement = rng.normal(0, 3.0, (waves, 3)).clip(-6, 6)
    return np.concatenate([displacement, wave_vector, rng.uniform(0, 2 * np.pi, (waves, 1))], axis=1)


def _draw_liver_vessels(rng: np.random.Generator) -> tuple[tuple[_Capsule, ...], tuple[_Capsule, ...]]:
    """Hepatic veins that meet at the cava under the dome; portal branches from the hilum."""

    def branch(start: tuple, end: tuple, radius: float, twigs: int) -> list[_Capsule]:
        first, last = np.array(start, float), np.array(end) + rng.normal(0, 9, 3)
        middle = (first + last) / 2 + rng.normal(0, 6, 3)
        tubes = [_Capsule(first, middle, (radius, 0.8 * radius)), _Capsule(middle, last, (0.8 * radius, 1.6))]
        for _ in range(twigs):
            root = first + (last - first) * rng.uniform(0.4, 0.8)
            tubes.append(_Capsule(middle, root + rng.normal(0, 24, 3), (0.5 * radius, 1.3)))
        return tubes

    confluence, hilum = (18.0, -28.0, -22.0), (24.0, 2.0, -74.0)
    hepatic = branch(confluence, (100, -18, -66), 6.0, 2) + branch(confluence, (52, 48, -66), 6.0, 2)
    hepatic += branch(confluence, (-8, 46, -50), 5.5, 1)
    portal = branch(hilum, (92, -22, -84), 7.5, 3) + branch(hilum, (80, 30, -58), 6.0, 2)
    portal += branch(hilum, (-4, 46, -56), 6.0, 2)
    return tuple(hepatic), tuple(portal)


def _draw_pancreas(rng: np.random.Generator) -> tuple[_Capsule, ...]:
    knots = np.array([(32, 8, -122), (12, 14, -108), (-22, 4, -98), (-66, -20, -84)])
    knots = knots + rng.normal(0, 5, (4, 3))
    widths = np.array([14, 11, 10, 8]) * rng.uniform(0.8, 1.15)
    return tuple(_Capsule(knots[n], knots[n + 1], (float(widths[n]), float(widths[n + 1]))) for n in range(3))


def _draw_bowel(rng: np.random.Generator) -> tuple[_Bowel, ...]:
    """Colon as a frame, small bowel inside it."""
    colon = np.array(
        [(92, -18, -300), (90, -16, -170), (86, 12, -136), (52, 58, -126), (0, 64, -128), (-52, 54, -108)]
        + [(-94, 6, -96), (-100, -22, -130), (-100, -24, -300)]
    ) + rng.normal(0, 6, (9, 3))
    loops = []
    for start, end in zip(colon[:-1], colon[1:], strict=True):
        tube = _Capsule(start, end, (rng.uniform(13, 21), rng.uniform(13, 21)))
        content = "faeces" if rng.random() < 0.6 else "bowel_fluid"
        level = (start[1] + end[1]) / 2 + rng.uniform(-14, 22)
        loops.append(_Bowel(tube, content, 2.5, level))
    for _ in range(int(rng.integers(38, 64))):
        middle = rng.uniform((-78, -22, -300), (74, 68, -112))
        half = rng.normal(0, 1, 3) * (1.0, 0.7, 0.5)
        half *= rng.uniform(10, 30) / np.linalg.norm(half)
        tube = _Capsule(middle - half, middle + half, (rng.uniform(9, 15), rng.uniform(9, 15)))
        content = rng.choice(["bowel_fluid", "bowel_contrast", "bowel_wall"], p=[0.55, 0.15, 0.3])
        level = middle[1] + (rng.uniform(0, 10) if rng.random() < 0.25 else 60.0)
        loops.append(_Bowel(tube, str(content), rng.uniform(2.0, 3.5), level))
    return tuple(loops)


# --- grids: how a scanner cuts the patient ---


def _axial_affine(
    shape: tuple[int, int, int], spacing: np.ndarray, flips: np.ndarray, centre: np.ndarray, tilt: np.ndarray
) -> np.ndarray:
    """Affine of an axial stack centred at world ``centre`` (mm), tilted by ``tilt`` degrees about x, y, z."""
    affine = np.eye(4)
    affine[:3, :3] = _rotation(tilt) @ np.diag(flips * spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _stack_along_z(
    anatomy: _Anatomy, rng: np.random.Generator, counts: tuple[int, int], thickness: tuple[float, float]
) -> tuple[int, float, float]:
    """Number of slices, their distance and the patient z of the stack's middle.

    The stack is as long as needed for about 30-55 % of the slices to hold no liver.
    """
    liver = -anatomy.liver_bottom * anatomy.scale[2]
    length = liver / (1 - rng.uniform(0.34, 0.54))
    slices = int(rng.integers(counts[0], counts[1] + 1))
    spacing = float(np.clip(length / slices, *thickness))
    slices = int(np.clip(round(length / spacing), *counts))
    top = rng.uniform(-8, 20)
    return slices, spacing, top - slices * spacing / 2


def _ct_grid(anatomy: _Anatomy, rng: np.random.Generator) -> tuple[Grid, np.ndarray]:
    slices, thickness, middle = _stack_along_z(anatomy, rng, (32, 40), (5.0, 7.0))
    width = 2 * (_CAVITY_MM[0] + anatomy.muscle_mm + anatomy.fat_mm) * anatomy.scale[0]
    pixel = float(np.clip(width * rng.uniform(1.04, 1.22) / 128, 2.6, 3.2))
    shift = rng.uniform((-20, -30, -400), (20, 30, 400))
    off_centre = np.array([rng.normal(0, 5), rng.normal(0, 6) - 6, middle])
    flips = rng.choice([-1.0, 1.0], 3)
    shape = (128, 128, slices)
    affine = _axial_affine(shape, np.array([pixel, pixel, thickness]), flips, shift + off_centre, np.zeros(3))
    return Grid(shape, affine), shift


def _mr_grid(anatomy: _Anatomy, rng: np.random.Generator) -> tuple[Grid, np.ndarray]:
    slices, thickness, middle = _stack_along_z(anatomy, rng, (26, 38), (5.5, 8.0))
    width = 2 * (_CAVITY_MM[0] + anatomy.muscle_mm + anatomy.fat_mm) * anatomy.scale[0]
    pixels = int(rng.choice([144, 160, 176]))
    pixel = float(np.clip(width * rng.uniform(1.0, 1.15) / pixels, 1.6, 2.4))
    shift = rng.uniform((-40, -40, -120), (40, 40, 120))
    off_centre = np.array([rng.normal(0, 8), rng.normal(0, 6), middle])
    flips = rng.choice([-1.0, 1.0], 3)
    depth = 2 * (_CAVITY_MM[1] + anatomy.muscle_mm + 10.0 + anatomy.fat_mm) * anatomy.scale[1]
    rows = int(np.clip(depth * rng.uniform(1.08, 1.2) / pixel, 0.7 * pixels, pixels))
    shape = (pixels, rows, slices)  # rectangular field of view
    tilt = rng.normal(0, 2.0, 3).clip(-4, 4)
    affine = _axial_affine(shape, np.array([pixel, pixel, thickness]), flips, shift + off_centre, tilt)
    return Grid(shape, affine), shift


# --- painting: fractions of tissue in every voxel ---


class _Canvas:
    """Voxels that are filled with tissue from front to back; what is painted first covers what follows."""

    def __init__(
        self, anatomy: _Anatomy, grid: Grid, shift: np.ndarray, tissues: Tissues, rng: np.random.Generator
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


def _union(parts: tuple[_Ellipsoid, ...], blend_mm: float, points: Points) -> np.ndarray:
    f = parts[0](*points)
    for part in parts[1:]:
        f = _smooth_min(f, part(*points), blend_mm)
    return f


def _bounds_of(parts: tuple[_Ellipsoid, ...]) -> Bounds:
    corners = [part.bounds() for part in parts]
    return np.min([c[0] for c in corners], axis=0) - 8.0, np.max([c[1] for c in corners], axis=0) + 8.0


def _muscle_mm(a: _Anatomy, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Thickness of the muscular wall, more beside the spine."""
    return a.muscle_mm + 13.0 * np.exp(-((x / 85.0) ** 4)) / (1.0 + np.exp((y + 30.0) / 12.0))


def _cavity(x: np.ndarray, y: np.ndarray, power: float) -> np.ndarray:
    """Radial distance in canonical mm to the inner surface of the abdominal wall."""
    rho = (np.abs(x / _CAVITY_MM[0]) ** power + np.abs(y / _CAVITY_MM[1]) ** power + 1e-6) ** (1 / power)
    return np.sqrt(x * x + y * y) * (1 - 1 / rho)


def _paint_patient(canvas: _Canvas, a: _Anatomy) -> None:
    """All tissues, front to back."""
    x, y, _ = canvas.points
    cavity = _cavity(x, y, a.wall_power)
    diaphragm = _union(a.domes, 30.0, canvas.points)
    diaphragm = _smooth_min(diaphragm, canvas.points[2] + 78.0, 12.0)
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
    chambers = _Ellipsoid(a.heart.centre, a.heart.radii - 9.0, a.heart.axes)
    above = canvas.cover(lambda *_: 1.5 - diaphragm, canvas.box(None))
    canvas.paint(chambers, "heart", bounds=chambers.bounds(), within=above)
    canvas.paint(a.heart, "muscle", bounds=a.heart.bounds(), within=above)
    inside = canvas.cover(lambda *_: below, canvas.box(None))
    for loop in a.bowel:
        _paint_bowel(canvas, loop, inside)
    _paint_back_muscles(canvas, a, cavity)
    _paint_wall(canvas, a, cavity, diaphragm)


def _paint_spine(canvas: _Canvas, a: _Anatomy, cavity: np.ndarray) -> None:
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


def _paint_ribs(canvas: _Canvas, a: _Anatomy, cavity: np.ndarray) -> None:
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


def _paint_great_vessels(canvas: _Canvas, a: _Anatomy) -> None:
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


def _paint_kidney(canvas: _Canvas, kidney: _Ellipsoid, label: int) -> None:
    """Cortex, medulla, and sinus fat that opens to the middle."""
    side = np.sign(kidney.centre[0])
    hilum = kidney.centre + np.array([-side * 0.75, 0.35, 0.0]) * kidney.radii
    sinus = _Ellipsoid(hilum, kidney.radii * (0.7, 0.42, 0.45), kidney.axes)
    pelvis = _Ellipsoid(hilum, kidney.radii * (0.45, 0.2, 0.25), kidney.axes)
    medulla = _Ellipsoid(kidney.centre, kidney.radii * (0.72, 0.7, 0.82), kidney.axes)
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


def _paint_liver(canvas: _Canvas, a: _Anatomy, below: np.ndarray) -> None:
    """Parenchyma; its vessels and lesions count as liver."""
    box = canvas.box(_bounds_of(a.liver))
    if canvas.free[box].size == 0:
        return

    def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        f = _union(a.liver, 22.0, (x, y, z))
        for cut in a.liver_cuts:
            f = _smooth_max(f, -cut(x, y, z), 12.0)
        return _smooth_max(f, below[box], 6.0)

    inside = np.zeros_like(canvas.free)
    inside[box] = canvas.cover(shape, box)
    for lesion in a.lesions:
        canvas.paint(lesion, "lesion", bounds=lesion.bounds(), label=LIVER, within=inside)
    for tissue, tubes in (("hepatic_vein", a.hepatic_vessels), ("portal_vein", a.portal_vessels)):
        for tube in tubes:
            canvas.paint(tube, tissue, bounds=tube.bounds(), label=LIVER, within=inside)
    canvas.fill(inside[box], "liver", box=box, label=LIVER)


def _paint_spleen(canvas: _Canvas, a: _Anatomy, below: np.ndarray) -> None:
    bounds = _bounds_of(a.spleen)
    box = canvas.box(bounds)

    def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        f = _union(a.spleen, 15.0, (x, y, z))
        bed = a.stomach[0](x, y, z) - 3.0
        return _smooth_max(_smooth_max(f, -bed, 6.0), below[box], 5.0)

    canvas.paint(shape, "spleen", bounds=bounds, label=_VALUES["spleen"])


def _paint_stomach(canvas: _Canvas, a: _Anatomy, below: np.ndarray) -> None:
    bounds, label = _bounds_of(a.stomach), _VALUES["stomach"]
    box = canvas.box(bounds)

    def shape(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return _smooth_max(_union(a.stomach, 18.0, (x, y, z)), below[box], 5.0)

    def gas(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(shape(x, y, z) + 4.0, a.stomach_gas_level - y)

    canvas.paint(gas, "gas", bounds=bounds, label=label)
    canvas.paint(lambda *p: shape(*p) + 4.0, "food", bounds=bounds, label=label)
    canvas.paint(shape, "bowel_wall", bounds=bounds, label=label)


def _paint_bowel(canvas: _Canvas, loop: _Bowel, inside: np.ndarray) -> None:
    lumen, bounds = loop.tube.shrunk(loop.wall_mm), loop.tube.bounds()

    def gas(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
        return np.maximum(lumen(x, y, z), loop.gas_level - y)

    if loop.gas_level < bounds[1][1]:
        canvas.paint(gas, "gas", bounds=bounds, within=inside)
    canvas.paint(lumen, loop.content, bounds=bounds, within=inside)
    canvas.paint(loop.tube, "bowel_wall", bounds=bounds, within=inside)


def _paint_back_muscles(canvas: _Canvas, a: _Anatomy, cavity: np.ndarray) -> None:
    """Psoas beside the lumbar spine, the erector spinae behind it."""
    x, y, _ = canvas.points
    within = canvas.cover(lambda *_: cavity - _muscle_mm(a, x, y), canvas.box(None))
    no_turn = np.eye(3)
    for side in (-1.0, 1.0):
        centre = np.array([side * 36.0, a.spine_y - 2.0, -215.0])
        psoas = _Ellipsoid(centre, np.array([20.0, 20.0, 120.0]), no_turn)
        canvas.paint(psoas, "muscle", bounds=psoas.bounds())
        centre = np.array([side * 30.0, a.spine_y - 36.0, -100.0])
        spinae = _Ellipsoid(centre, np.array([28.0, 21.0, 900.0]), no_turn)
        canvas.paint(spinae, "muscle", bounds=spinae.bounds(), within=within)


def _paint_wall(canvas: _Canvas, a: _Anatomy, cavity: np.ndarray, diaphragm: np.ndarray) -> None:
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


def _paint_table(canvas: _Canvas, a: _Anatomy, rng: np.random.Generator) -> None:
    """A thin curved shell just below the back; it replaces air."""
    x, y, _ = canvas.points
    back = -_CAVITY_MM[1] - a.muscle_mm - 13.0 - 1.2 * a.fat_mm
    shell = np.abs(y - back + rng.uniform(4, 12) - (x / rng.uniform(22, 34)) ** 2) - 2.4
    shell = np.maximum(shell, np.abs(x) - 190.0)
    skin_free = np.clip((-850.0 - canvas.signal[0]) / 150.0, 0.0, 1.0)
    cover = canvas.cover(lambda *_: shell, canvas.box(None)) * skin_free
    canvas.signal[0] += cover * rng.uniform(700, 1050)


# --- CT ---


def _ct_tissues(rng: np.random.Generator) -> Tissues:
    """HU of every tissue for one patient in one contrast phase."""
    u = rng.uniform
    phase = rng.choice(["native", "arterial", "portal"], p=[0.2, 0.2, 0.6])
    if phase == "native":
        blood = u(35, 48)
        hu = {"liver": u(46, 66), "spleen": u(42, 54), "aorta": blood, "cava": blood, "portal_vein": blood}
        hu |= {"hepatic_vein": blood, "cortex": u(28, 38), "medulla": u(25, 34), "pancreas": u(30, 45)}
    elif phase == "arterial":
        hu = {"liver": u(58, 82), "spleen": u(100, 145), "aorta": u(230, 340), "cava": u(50, 110)}
        hu |= {"portal_vein": u(80, 140), "hepatic_vein": u(50, 70), "cortex": u(150, 215)}
        hu |= {"medulla": u(60, 100), "pancreas": u(85, 120)}
    else:
        hu = {"liver": u(88, 128), "spleen": u(105, 140), "aorta": u(130, 180), "cava": u(115, 165)}
        hu |= {"portal_vein": u(145, 190), "hepatic_vein": u(135, 180), "cortex": u(155, 210)}
        hu |= {"medulla": u(130, 185), "pancreas": u(75, 110)}
    soft = u(-4, 4)
    hu |= {"muscle": u(48, 68) + soft, "fat": u(-112, -92), "skin": u(-10, 30), "bowel_wall": u(40, 95)}
    hu |= {"bowel_fluid": u(8, 32), "bowel_contrast": u(60, 230), "faeces": u(-90, 20), "food": u(15, 60)}
    hu |= {"bile": u(2, 18), "urine": u(0, 20), "canal": u(20, 40), "disc": u(70, 110), "lesion": u(5, 70)}
    hu |= {"marrow": u(130, 230), "cortical_bone": u(380, 620), "heart": 0.5 * (hu["aorta"] + hu["cava"])}
    hu |= {"lung": u(-880, -800), "gas": -960.0, "air": -1000.0}
    return {tissue: (float(value),) for tissue, value in hu.items()}


def _ct_image(canvas: _Canvas, rng: np.random.Generator) -> np.ndarray:
    """Kernel blur and correlated noise on the mean HU, int16."""
    blur = rng.uniform(0.25, 0.6)
    hu = gaussian_filter(canvas.signal[0], (blur, blur, 0.0))
    grain = rng.uniform(0.4, 0.8)
    noise = gaussian_filter(rng.standard_normal(hu.shape, np.float32), (grain, grain, 0.0))
    hu += noise * (rng.uniform(5.0, 16.0) / noise.std())
    return np.clip(np.rint(hu), -1024, 3071).astype(np.int16)


# --- T1-weighted MRI ---

# Proton density (water = 1), T1 and T2* in ms at 1.5 T, fat share of the signal-giving protons.
_MR_TISSUES = {
    "liver": (0.80, 570.0, 24.0, 0.04),
    "spleen": (0.84, 1050.0, 50.0, 0.0),
    "cortex": (0.86, 940.0, 55.0, 0.0),
    "medulla": (0.90, 1350.0, 55.0, 0.0),
    "pancreas": (0.82, 600.0, 40.0, 0.08),
    "aorta": (0.85, 1450.0, 120.0, 0.0),
    "cava": (0.85, 1450.0, 80.0, 0.0),
    "portal_vein": (0.85, 1450.0, 80.0, 0.0),
    "hepatic_vein": (0.85, 1450.0, 80.0, 0.0),
    "heart": (0.82, 1080.0, 40.0, 0.0),
    "muscle": (0.78, 950.0, 30.0, 0.03),
    "fat": (0.95, 300.0, 50.0, 0.93),
    "skin": (0.60, 600.0, 15.0, 0.2),
    "bowel_wall": (0.80, 950.0, 35.0, 0.0),
    "bowel_fluid": (0.95, 2600.0, 80.0, 0.0),
    "bowel_contrast": (0.95, 1500.0, 60.0, 0.0),
    "faeces": (0.50, 650.0, 12.0, 0.1),
    "food": (0.85, 1800.0, 40.0, 0.05),
    "bile": (1.00, 2200.0, 200.0, 0.0),
    "urine": (1.00, 3200.0, 300.0, 0.0),
    "lesion": (0.90, 1700.0, 80.0, 0.0),
    "canal": (0.95, 2000.0, 100.0, 0.0),
    "disc": (0.70, 1000.0, 30.0, 0.0),
    "marrow": (0.75, 600.0, 12.0, 0.45),
    "cortical_bone": (0.10, 500.0, 1.5, 0.0),
    "lung": (0.15, 1000.0, 1.8, 0.0),
    "gas": (0.0, 1000.0, 1.0, 0.0),
    "air": (0.0, 1000.0, 1.0, 0.0),
}


@dataclass(frozen=True, eq=False)
class _MrField:
    tissues: Tissues  # (water, fat) signal at the echo time
    phase: float  # angle of fat against water at the echo time, radians
    scale: float  # stored units of a signal of 1
    noise: float  # standard deviation of each channel of the receiver, signal units
    bias: np.ndarray  # (9,) coefficients of the receive field


def _draw_mr(rng: np.random.Generator, *, out_of_phase: bool) -> _MrField:
    """One dual-echo spoiled gradient echo acquisition; both echoes draw the same numbers."""
    u = rng.uniform
    repetition_ms, flip = u(110, 200), np.radians(u(65, 82))
    echo_ms = (u(2.2, 2.4), u(4.5, 4.75))[0 if out_of_phase else 1]
    # Blood that flows in has not been saturated: it can be dark, grey or bright.
    inflow = {name: u(0.6, 1.6) for name in ("aorta", "cava", "portal_vein", "hepatic_vein")}
    liver_fat = u(0.01, 0.06) if rng.random() < 0.7 else u(0.06, 0.2)
    tissues: Tissues = {}
    for name, (density, t1, t2_star, fat_share) in _MR_TISSUES.items():
        t1, t2_star = t1 * u(0.94, 1.06), t2_star * u(0.85, 1.15)
        share = liver_fat if name == "liver" else fat_share * u(0.9, 1.05)
        water = (1 - share) * _spoiled_gradient_echo(density, t1, t2_star, repetition_ms, flip, echo_ms)
        fat = share * _spoiled_gradient_echo(density, 300.0, t2_star, repetition_ms, flip, echo_ms)
        tissues[name] = (float(water * inflow.get(name, 1.0)), float(fat))
    liver = sum(tissues["liver"])
    return _MrField(
        tissues=tissues,
        phase=2 * np.pi * 220.0 * echo_ms / 1000.0,  # fat is 220 Hz below water at 1.5 T
        scale=u(150, 600) / liver,
        noise=liver / u(18, 40),
        bias=rng.normal(0, 1, 9) * u(0.05, 0.16),
    )


def _spoiled_gradient_echo(
    density: float, t1_ms: float, t2_star_ms: float, repetition_ms: float, flip: float, echo_ms: float
) -> float:
    """Steady-state signal of a spoiled gradient echo (Ernst equation)."""
    e1 = np.exp(-repetition_ms / t1_ms)
    return float(density * np.sin(flip) * (1 - e1) / (1 - np.cos(flip) * e1) * np.exp(-echo_ms / t2_star_ms))


def _mr_image(
    canvas: _Canvas, field: _MrField, rng: np.random.Generator, noise: np.random.Generator
) -> np.ndarray:
    """Complex sum of water and fat in each voxel, receive field, Rician noise, int16 >= 0."""
    blur = rng.uniform(0.25, 0.45)
    water, fat = (gaussian_filter(part, (blur, blur, 0.0)) for part in canvas.signal)
    receive = _receive_field(canvas.free.shape, field.bias)
    real = (water + fat * np.float32(np.cos(field.phase))) * receive
    imaginary = fat * np.float32(np.sin(field.phase)) * receive
    real += field.noise * noise.standard_normal(real.shape, np.float32)
    imaginary += field.noise * noise.standard_normal(real.shape, np.float32)
    magnitude = np.sqrt(real * real + imaginary * imaginary)
    return np.clip(np.rint(field.scale * magnitude), 0, 32767).astype(np.int16)


def _receive_field(shape: tuple[int, ...], coefficients: np.ndarray) -> np.ndarray:
    """Smooth positive sensitivity: the exponential of a quadratic polynomial, (I, J, K)."""
    axes = (np.linspace(-1, 1, n, dtype=np.float32) for n in shape)
    i, j, k = np.meshgrid(*axes, indexing="ij", sparse=True)
    c = coefficients.astype(np.float32)
    quadratic = c[3] * i * i + c[4] * j * j + c[5] * k * k + c[6] * i * j + c[7] * i * k + c[8] * j * k
    return np.exp(c[0] * i + c[1] * j + c[2] * k + quadratic)
