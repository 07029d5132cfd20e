"""MetFaces: faces in works of art, without labels, to test on another domain.

Counts, format and terms: the README of the set's own repository. File names (images/PAINTING-K.png, K counting
the faces of one work) are not verified; any PNG in the folder is taken. NVIDIA's labels of 40 of the images
(MetFaces-40) are not read. Tested with three real portraits under other names, and with made-up files.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from sgan_core.cohort import Case
from sgan_core.errors import InputError
from sgan_datasets.faces import FACE_PARTS, face_cohort
from sgan_datasets.layout import absolute, files_of, require_folder, safe_id
from sgan_datasets.source import About, DataSet, Scan

NAME = "metfaces"


def scan(root: Path) -> Scan:
    """Every PNG of the folder images, unlabelled and in train; faces of one work are one patient.

    Raises InputError when there is no such folder or no PNG in it.
    """
    here = Path(os.path.abspath(root))
    is_inner = here.name.lower() == "images" and here.is_dir()
    folder = here if is_inner else require_folder(here, ("images", "metfaces/images"), NAME)
    images = files_of(folder, (".png",))
    if not images:
        raise InputError(f"{folder}: no PNG file in it. Download the images of {NAME} again.")
    cases = [
        Case(
            id=f"{NAME}-{safe_id(name)}",
            patient=f"{NAME}-{safe_id(re.sub(r'(?<=[0-9])-[0-9]+$', '', name))}",
            image=absolute(image),
            domain=NAME,
        )
        for name, image in images.items()
    ]
    # The classes of celebamask: what a model that is tried on these images draws.
    return Scan(face_cohort(NAME, FACE_PARTS, cases))


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        About(
            name=NAME,
            modality="face",
            what="faces in paintings and sculptures, unlabelled, as another domain than photographs",
            size="1336 images, 1024 x 1024",
            source="https://github.com/NVlabs/metfaces-dataset",
            licence="CC BY-NC 2.0 by NVIDIA for the processed images; the works themselves CC0 by the Metropolitan "
            "Museum of Art; both as the set's README says",
            get="follow the download link on the set's page; the folder images is enough",
            citation="Karras et al., Training generative adversarial networks with limited data, NeurIPS 2020, "
            "arXiv:2006.06676",
            layout="images/PAINTING-K.png; the folder unprocessed is not used. No labels, no official split.",
        ),
        scan,
    ),
)
