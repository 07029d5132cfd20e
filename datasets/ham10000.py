"""HAM10000: dermoscopic images from Vienna and Queensland, with lesion masks.

Layout and counts: the page of the set (doi:10.7910/DVN/DBW86T) and Sci. Data 5:180161. Not verified: the
columns of the .tab form of HAM10000_metadata (taken to be those of the .csv). Copies of the licence disagree,
see ``DATA_SETS``. Tested with four real images and masks; the two image folders and the metadata with
made-up files only.
"""

from __future__ import annotations

from pathlib import Path

from sgan_core.errors import InputError
from sgan_datasets.dermoscopy import (
    find_unpacked,
    home_of,
    lesion_cohort,
    read_lesion,
    read_lesions,
    unknown_lesions,
)
from sgan_datasets.isic import isic_cases, isic_images
from sgan_datasets.layout import files_of, find_folder, missing_pairs, require_folder
from sgan_datasets.source import About, DataSet, Scan

NAME = "ham10000"
IMAGE_FOLDERS = (
    "HAM10000_images_part_1",
    "HAM10000_images_part_2",
    "HAM10000_images_part1",
    "HAM10000_images_part2",
    "HAM10000_images",
)
MASK_FOLDER = "HAM10000_segmentations_lesion_tschandl"


def scan(root: Path) -> Scan:
    """The images of all image folders, each with its mask and its lesion as the patient.

    Raises InputError when none of ``IMAGE_FOLDERS`` holds an image.
    """
    home = home_of(root, (*IMAGE_FOLDERS, MASK_FOLDER))
    home = find_folder(home, ("dataverse_files",)) or home  # what a browser calls the whole download
    some = require_folder(home, IMAGE_FOLDERS, NAME)
    folders = [found for folder in IMAGE_FOLDERS if (found := find_unpacked(home, folder))]
    images = {name: path for folder in reversed(folders) for name, path in isic_images(folder).items()}
    if not images:
        raise InputError(
            f"{some}: no image is called ISIC_ and seven digits. Unpack the archive {NAME} again."
        )
    images = dict(sorted(images.items()))
    mask_folder = find_unpacked(home, MASK_FOLDER)
    masks = files_of(mask_folder, ("_segmentation.png",)) if mask_folder else {}
    lesions = read_lesions(home)
    problems = missing_pairs(images, masks) if mask_folder else []
    if lesions is None:
        problems += unknown_lesions(images)
    return Scan(lesion_cohort(NAME, isic_cases(NAME, "train", images, masks, lesions or {})), tuple(problems))


DATA_SETS: tuple[DataSet, ...] = (
    DataSet(
        About(
            name=NAME,
            modality="dermoscopy",
            what="dermoscopic images of pigmented lesions from Vienna and Queensland, with lesion masks",
            size="10015 images, 600 x 450",
            source="https://doi.org/10.7910/DVN/DBW86T",
            licence="non-commercial: copies of the set say CC BY-NC-SA 4.0 or CC BY-NC 4.0, Tschandl, Medical "
            "University of Vienna; the terms on the page of the set hold",
            get="download HAM10000_images_part_1.zip, HAM10000_images_part_2.zip, HAM10000_metadata and "
            "HAM10000_segmentations_lesion_tschandl.zip from Harvard Dataverse",
            citation="Tschandl, Rosendahl, Kittler, The HAM10000 dataset, Sci. Data 5:180161, 2018; masks: "
            "Tschandl et al., Human-computer collaboration for skin cancer recognition, Nat. Med. 26, 2020",
            layout="HAM10000_images_part_1/ISIC_nnnnnnn.jpg, HAM10000_images_part_2/..., or both in "
            "HAM10000_images; HAM10000_segmentations_lesion_tschandl/ISIC_nnnnnnn_segmentation.png; "
            "HAM10000_metadata (.csv or .tab). Some lesions were photographed several times: the lesion "
            "(lesion_id of the metadata) is the patient; persons are not published. Without the metadata, or "
            "the lesion groupings of ISIC 2018 Task 3, each image counts as a patient. The images are also "
            "those of isic2018, Task 3, with the same case ids; for the same patients there, put the same "
            "table beside both. No official split.",
        ),
        scan,
        read_label=read_lesion,
    ),
)
