"""How a scanner sees the patient: its grid, CT numbers, the signal of a spoiled gradient echo."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter

from sgan_core.imaging.grid import Grid
from sgan_core.phantom.anatomy import CAVITY_MM, Anatomy, rotation
from sgan_core.phantom.painting import Canvas, Tissues

# --- grids: how a scanner cuts the patient ---


def _axial_affine(
    shape: tuple[int, int, int], spacing: np.ndarray, flips: np.ndarray, centre: np.ndarray, tilt: np.ndarray
) -> np.ndarray:
    """Affine of an axial stack centred at world ``centre`` (mm), tilted by ``tilt`` degrees about x, y, z."""
    affine = np.eye(4)
    affine[:3, :3] = rotation(tilt) @ np.diag(flips * spacing)
    affine[:3, 3] = centre - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine


def _stack_along_z(
    anatomy: Anatomy, rng: np.random.Generator, counts: tuple[int, int], thickness: tuple[float, float]
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


def ct_grid(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Grid, np.ndarray]:
    """Grid of a CT scan, and where the patient lies in the world, (3,) mm."""
    slices, thickness, middle = _stack_along_z(anatomy, rng, (32, 40), (5.0, 7.0))
    width = 2 * (CAVITY_MM[0] + anatomy.muscle_mm + anatomy.fat_mm) * anatomy.scale[0]
    pixel = float(np.clip(width * rng.uniform(1.04, 1.22) / 128, 2.6, 3.2))
    shift = rng.uniform((-20, -30, -400), (20, 30, 400))
    off_centre = np.array([rng.normal(0, 5), rng.normal(0, 6) - 6, middle])
    flips = rng.choice([-1.0, 1.0], 3)
    shape = (128, 128, slices)
    affine = _axial_affine(shape, np.array([pixel, pixel, thickness]), flips, shift + off_centre, np.zeros(3))
    return Grid(shape, affine), shift


def mr_grid(anatomy: Anatomy, rng: np.random.Generator) -> tuple[Grid, np.ndarray]:
    """Grid of an MRI scan, a little tilted, and where the patient lies in the world, (3,) mm."""
    slices, thickness, middle = _stack_along_z(anatomy, rng, (26, 38), (5.5, 8.0))
    width = 2 * (CAVITY_MM[0] + anatomy.muscle_mm + anatomy.fat_mm) * anatomy.scale[0]
    pixels = int(rng.choice([144, 160, 176]))
    pixel = float(np.clip(width * rng.uniform(1.0, 1.15) / pixels, 1.6, 2.4))
    shift = rng.uniform((-40, -40, -120), (40, 40, 120))
    off_centre = np.array([rng.normal(0, 8), rng.normal(0, 6), middle])
    flips = rng.choice([-1.0, 1.0], 3)
    depth = 2 * (CAVITY_MM[1] + anatomy.muscle_mm + 10.0 + anatomy.fat_mm) * anatomy.scale[1]
    rows = int(np.clip(depth * rng.uniform(1.08, 1.2) / pixel, 0.7 * pixels, pixels))
    shape = (pixels, rows, slices)  # rectangular field of view
    tilt = rng.normal(0, 2.0, 3).clip(-4, 4)
    affine = _axial_affine(shape, np.array([pixel, pixel, thickness]), flips, shift + off_centre, tilt)
    return Grid(shape, affine), shift


# --- CT ---


def ct_tissues(rng: np.random.Generator) -> Tissues:
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


def ct_image(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
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


def draw_mr(rng: np.random.Generator, *, out_of_phase: bool) -> _MrField:
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


def mr_image(
    canvas: Canvas, field: _MrField, rng: np.random.Generator, noise: np.random.Generator
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
