"""What the seed decides about the patient: the shape and place of every organ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sgan_core.cohort import Label

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

CAVITY_MM = (125.0, 85.0)  # canonical half axes, right-left and anterior-posterior
SHAPE, CT, MR, NOISE_IN, NOISE_OUT = range(5)  # streams of random numbers of one patient

Bounds = tuple[np.ndarray, np.ndarray]  # lower and upper corner, canonical mm


def stream(seed: int, key: int) -> np.random.Generator:
    """Random numbers of patient ``seed`` for one purpose, SHAPE to NOISE_OUT."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(key,)))


# --- implicit shapes: x, y, z in canonical mm -> about the distance to the surface, negative inside ---


def smooth_min(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Union of two shapes, rounded where their distances differ by less than ``blend_mm``."""
    h = np.maximum(blend_mm - np.abs(a - b), 0.0)
    return np.minimum(a, b) - h * h * (0.25 / blend_mm)


def smooth_max(a: np.ndarray, b: np.ndarray, blend_mm: float) -> np.ndarray:
    """Intersection of two shapes, rounded as ``smooth_min`` does."""
    return -smooth_min(-a, -b, blend_mm)


@dataclass(frozen=True, eq=False)
class Ellipsoid:
    """An organ, or a part of one."""

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
class Capsule:
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

    def shrunk(self, wall_mm: float) -> Capsule:
        return Capsule(self.start, self.end, (self.radii[0] - wall_mm, self.radii[1] - wall_mm))


def rotation(degrees: np.ndarray) -> np.ndarray:
    """Rotation about x, then y, then z, (3, 3)."""
    (sx, sy, sz), (cx, cy, cz) = np.sin(np.radians(degrees)), np.cos(np.radians(degrees))
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    return np.asarray(about_z @ about_y @ about_x)


# --- the patient ---


@dataclass(frozen=True, eq=False)
class Bowel:
    """A piece of bowel with what it holds."""

    tube: Capsule
    content: str  # tissue
    wall_mm: float
    gas_level: float  # canonical y above which the lumen holds gas (the patient lies on the back)


@dataclass(frozen=True, eq=False)
class Anatomy:
    """One patient: organs in the canonical frame, what bends and stretches it."""

    scale: np.ndarray  # (3,) patient mm per canonical mm
    warp: np.ndarray  # (waves, 7): displacement (3,) mm, wave vector (3,) rad/mm, phase
    wall_power: float  # exponent of the superellipse of the cavity
    muscle_mm: float
    fat_mm: float
    liver: tuple[Ellipsoid, ...]
    liver_cuts: tuple[Ellipsoid, ...]
    liver_bottom: float  # canonical z
    hepatic_vessels: tuple[Capsule, ...]
    portal_vessels: tuple[Capsule, ...]
    lesions: tuple[Ellipsoid, ...]
    gallbladder: Ellipsoid | None
    spleen: tuple[Ellipsoid, ...]
    kidneys: tuple[Ellipsoid, Ellipsoid]  # right, left
    stomach: tuple[Ellipsoid, ...]
    stomach_gas_level: float
    pancreas: tuple[Capsule, ...]
    bowel: tuple[Bowel, ...]
    heart: Ellipsoid
    domes: tuple[Ellipsoid, ...]
    spine_y: float
    spine_bow: float
    vertebra_phase: float
    rib_phase: float
    vessel_radius: float


def draw_anatomy(seed: int) -> Anatomy:
    """The patient of a seed; odd seeds from TEST_SEEDS on are of the held-out family."""
    rng = stream(seed, SHAPE)
    u = rng.uniform

    def ellipsoid(
        centre: tuple, radii: tuple | np.ndarray, *, turn: tuple = (0, 0, 0), jitter: float = 6.0
    ) -> Ellipsoid:
        return Ellipsoid(
            np.array(centre) + np.clip(rng.normal(0, jitter, 3), -2 * jitter, 2 * jitter),
            np.array(radii) * u(0.87, 1.13, 3),
            rotation(np.array(turn) + rng.normal(0, 7, 3)),
        )

    # The held-out family reaches where no training patient does.
    held_out = seed >= TEST_SEEDS and seed % 2 == 1
    long_left = held_out and rng.random() < 0.5
    reach = u(1.25, 1.5) if long_left else u(0.55, 1.1)
    riedel = u(0.85, 1.2) if held_out and not long_left else max(0.0, u(-0.3, 0.6))
    size = u(0.86, 1.1)
    bottom = -118.0 * size - 45.0 * riedel
    tip = ellipsoid((90, -12, bottom + 48), (32 + 6 * riedel, 46, 48), jitter=4)
    tip = Ellipsoid(np.array([tip.centre[0], tip.centre[1], bottom + 48]), tip.radii, tip.axes)
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
    return Anatomy(
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


def _draw_liver_vessels(rng: np.random.Generator) -> tuple[tuple[Capsule, ...], tuple[Capsule, ...]]:
    """Hepatic veins that meet at the cava under the dome; portal branches from the hilum."""

    def branch(start: tuple, end: tuple, radius: float, twigs: int) -> list[Capsule]:
        first, last = np.array(start, float), np.array(end) + rng.normal(0, 9, 3)
        middle = (first + last) / 2 + rng.normal(0, 6, 3)
        tubes = [Capsule(first, middle, (radius, 0.8 * radius)), Capsule(middle, last, (0.8 * radius, 1.6))]
        for _ in range(twigs):
            root = first + (last - first) * rng.uniform(0.4, 0.8)
            tubes.append(Capsule(middle, root + rng.normal(0, 24, 3), (0.5 * radius, 1.3)))
        return tubes

    confluence, hilum = (18.0, -28.0, -22.0), (24.0, 2.0, -74.0)
    hepatic = branch(confluence, (100, -18, -66), 6.0, 2) + branch(confluence, (52, 48, -66), 6.0, 2)
    hepatic += branch(confluence, (-8, 46, -50), 5.5, 1)
    portal = branch(hilum, (92, -22, -84), 7.5, 3) + branch(hilum, (80, 30, -58), 6.0, 2)
    portal += branch(hilum, (-4, 46, -56), 6.0, 2)
    return tuple(hepatic), tuple(portal)


def _draw_pancreas(rng: np.random.Generator) -> tuple[Capsule, ...]:
    knots = np.array([(32, 8, -122), (12, 14, -108), (-22, 4, -98), (-66, -20, -84)])
    knots = knots + rng.normal(0, 5, (4, 3))
    widths = np.array([14, 11, 10, 8]) * rng.uniform(0.8, 1.15)
    return tuple(Capsule(knots[n], knots[n + 1], (float(widths[n]), float(widths[n + 1]))) for n in range(3))


def _draw_bowel(rng: np.random.Generator) -> tuple[Bowel, ...]:
    """Colon as a frame, small bowel inside it."""
    colon = np.array(
        [(92, -18, -300), (90, -16, -170), (86, 12, -136), (52, 58, -126), (0, 64, -128), (-52, 54, -108)]
        + [(-94, 6, -96), (-100, -22, -130), (-100, -24, -300)]
    ) + rng.normal(0, 6, (9, 3))
    loops = []
    for start, end in zip(colon[:-1], colon[1:], strict=True):
        tube = Capsule(start, end, (rng.uniform(13, 21), rng.uniform(13, 21)))
        content = "faeces" if rng.random() < 0.6 else "bowel_fluid"
        level = (start[1] + end[1]) / 2 + rng.uniform(-14, 22)
        loops.append(Bowel(tube, content, 2.5, level))
    for _ in range(int(rng.integers(38, 64))):
        middle = rng.uniform((-78, -22, -300), (74, 68, -112))
        half = rng.normal(0, 1, 3) * (1.0, 0.7, 0.5)
        half *= rng.uniform(10, 30) / np.linalg.norm(half)
        tube = Capsule(middle - half, middle + half, (rng.uniform(9, 15), rng.uniform(9, 15)))
        content = rng.choice(["bowel_fluid", "bowel_contrast", "bowel_wall"], p=[0.55, 0.15, 0.3])
        level = middle[1] + (rng.uniform(0, 10) if rng.random() < 0.25 else 60.0)
        loops.append(Bowel(tube, str(content), rng.uniform(2.0, 3.5), level))
    return tuple(loops)
