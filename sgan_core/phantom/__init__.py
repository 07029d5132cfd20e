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

from sgan_core.phantom.anatomy import LABELS, LIVER, TEST_SEEDS
from sgan_core.phantom.cohort import DOMAINS, PhantomCase, make_case, phantom_cohort, read_phantom

__all__ = [
    "DOMAINS",
    "LABELS",
    "LIVER",
    "TEST_SEEDS",
    "PhantomCase",
    "make_case",
    "phantom_cohort",
    "read_phantom",
]
