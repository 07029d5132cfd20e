"""What a bundle says about its model: MONAI metadata, inference configuration, readme, licence."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import numpy as np

from sgan_core import __version__
from sgan_core.config import TrainConfig
from sgan_core.terms import Terms, terms_of

_PACKAGES = ("nibabel", "safetensors")
_SCHEMA_URL = (
    "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20240725.json"
)
_MODALITIES = {"ct": "CT", "mr": "MR", "xray": "X-ray", "dermoscopy": "dermoscopy", "face": "photograph"}
_INTENDED_USE = "Research only. Not a medical device; not for diagnosis or treatment."
_PAPER = (
    "D. Li, J. Yang, K. Kreis, A. Torralba, S. Fidler: Semantic Segmentation with Generative Models: "
    "Semi-Supervised Learning and Strong Out-of-Domain Generalization. CVPR 2021."
)
_WHOLE = """\
A generative model of {what} and their labels, after SemanticGAN
(CVPR 2021). It explains an image by finding the latent that draws it; the label that belongs to the latent is a
segmentation. A student, where there is one in models/, draws the mask, which the generator then checks."""
_ALONE = """\
A segmenter of {what}: the student of a SemanticGAN (CVPR 2021)
without its generator. It segments; it cannot reconstruct an image nor judge its masks, so each is to be
reviewed."""
_UNKNOWN_LICENCE = "not stated"


def abilities(*, inverts: bool, judges: bool) -> str:
    """What a model can and cannot, in words. inverts: it has a generator; judges: a calibration of trust too."""
    if not inverts:
        return "segments; cannot reconstruct, cannot judge its masks: each is to be reviewed"
    return f"segments, reconstructs; {'judges' if judges else 'cannot judge'} its masks"


def metadata(name: str, config: TrainConfig, facts: dict[str, Any], *, inverts: bool) -> dict[str, Any]:
    """configs/metadata.json as MONAI's bundle specification wants it. inverts: whether there is a generator."""
    model_version = str(facts.get("version", "1.0.0"))
    size = config.student_size
    terms = terms_of(facts)
    plane = {"type": "image", "spatial_shape": [size, size], "dtype": "float32", "is_patch_data": False}
    image = plane | {
        "format": "magnitude",
        "modality": _modality(config),
        "num_channels": config.generator.image_channels,
        "value_range": [-1, 1],
        "channel_def": {str(i): channel for i, channel in enumerate(_image_channels(config))},
    }
    labels = plane | {
        "format": "labels",
        "num_channels": config.generator.num_classes,
        "value_range": [],
        "channel_def": {str(i): label for i, label in enumerate(_classes(config))},
    }
    packages = {"semanticgan": __version__} | {package: version(package) for package in _PACKAGES}
    return {
        "schema": _SCHEMA_URL,
        "version": model_version,
        "changelog": {model_version: f"written by semanticgan {__version__}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch").split("+")[0],  # without the name of the CUDA build
        "numpy_version": np.__version__,
        "required_packages_version": packages,
        "name": name,
        "task": f"Segmentation of {_list(_classes(config)[1:])} in {_modality(config)} images",
        "description": (
            "A generative model of images and their labels. A new image is inverted into the latent space; "
            "the label that belongs to the found latent is a segmentation. Where the model has a student, that "
            "draws the mask, and inversion checks it."
            if inverts
            else f"A student alone: {abilities(inverts=False, judges=False)}."
        ),
        "authors": str(facts.get("authors", "whoever trained this model with semanticgan")),
        "copyright": ". ".join(_licence(terms)),
        "data_source": ", ".join([str(facts.get("cohort", "not stated")), *_source_lines(terms)]),
        "data_type": "pictures or slices of volumes",
        "image_classes": f"{config.generator.image_channels} channel image, intensities in [-1, 1]",
        "label_classes": ", ".join(f"{i} is {label}" for i, label in enumerate(_classes(config))),
        "pred_classes": f"{config.generator.num_classes} channels of logits; the largest is the label",
        "eval_metrics": _validation_figures(facts),
        "intended_use": " ".join([_INTENDED_USE, *_restriction(terms)]),
        "references": [_PAPER],
        "network_data_format": {"inputs": {"image": image}, "outputs": {"pred": labels}},
    }


def inference_config() -> dict[str, Any]:
    """configs/inference.json: an inference workflow of MONAI, whose every entry can be overridden.

    It has the properties that monai.bundle.properties.InferProperties requires. ``image`` is a file or a folder,
    where it is given; else the images of ``dataset_dir`` are segmented.
    """
    part = "sgan_core.monai_inference."
    network = {"network": "@network_def"}
    return {
        "bundle_root": ".",
        "device": "auto",
        "dataset_dir": "$@bundle_root + '/images'",
        "image": "@dataset_dir",
        "output_dir": "$@bundle_root + '/eval'",
        "quality": "standard",
        "network_def": {
            "_target_": part + "SemanticGANSegmenter",
            "bundle_root": "@bundle_root",
            "device": "@device",
        },
        "preprocessing": {"_target_": part + "Preprocessing", **network},
        "dataset": {"_target_": part + "Cases", "image": "@image", "transform": "@preprocessing"},
        "inferer": {"_target_": part + "SliceInferer", "quality": "@quality"},
        "postprocessing": {"_target_": part + "Postprocessing", **network},
        "evaluator": {
            "_target_": part + "Evaluator",
            "dataset": "@dataset",
            **network,
            "inferer": "@inferer",
            "postprocessing": "@postprocessing",
            "output_dir": "@output_dir",
        },
        "run": ["$@evaluator.run()"],
    }


def licence_text(facts: dict[str, Any]) -> str:
    """The LICENSE file: of the weights, which follow the training data."""
    terms = terms_of(facts)
    sources = "".join(f"  {line}\n" for line in _source_lines(terms))
    return (
        "".join(f"{line}\n" for line in _licence(terms, "Licence of these model weights"))
        + "\nThe weights were learned from images, whose terms of use may reach to the weights. Where no\n"
        "licence is stated, ask whoever trained the model. The program semanticgan has a licence of its\n"
        "own, Apache-2.0 (https://www.apache.org/licenses/LICENSE-2.0).\n"
        + (f"\nThe images are of:\n{sources}" if sources else "")
    )


def readme(name: str, config: TrainConfig, facts: dict[str, Any], *, inverts: bool, card: str = "") -> str:
    """docs/README.md: what the model is, what it was trained on, what it cannot do.

    inverts: has a generator. card: Markdown of whoever trained it, which comes first.
    """
    generator = config.generator
    labels = "\n".join(f"| {label.value} | {label.name} | {label.code} |" for label in config.labels)
    figures = [f"| {key.replace('_', ' ')} | {_shown(value)} |" for key, value in _plain(facts).items()]
    shown = "\n".join(figures)
    size = config.student_size
    what = f"{_modality(config)} images ({size} x {size} px, channels: {generator.image_channels})"
    about = _WHOLE if inverts else _ALONE
    look = "the reconstruction and the trust that sgan-segment reports" if inverts else "every mask"
    terms = terms_of(facts)
    use = "\n".join(f"**{sentence}**\n" for sentence in [_INTENDED_USE, *_restriction(terms)])
    use += f"\n{card.strip()}\n" if card.strip() else ""
    sources = "\n".join(f"- {line}" for line in _source_lines(terms))
    use += f"\n## Images it learned from\n\n{sources}\n" if sources else ""
    return f"""# {name}

{about.format(what=what)}

{use}
## Labels

| value | name | SNOMED CT |
| --- | --- | --- |
| 0 | background | |
{labels}

## Training

| | |
| --- | --- |
| modality | {_modality(config)} |
| intensities | {_intensity(config)} |
| perceptual term | {config.perceptual} |
{shown}

## Use

    sgan-segment scan.nii.gz --model FOLDER --output results
    python -m monai.bundle run --config_file FOLDER/configs/inference.json \\
        --bundle_root FOLDER --image scan.nii.gz

The second command needs the package fire and writes FOLDER/eval/scan_seg.nii.gz; `--output_dir`,
`--device` and `--quality` (fast, standard, careful) can be given, and `--dataset_dir` for a folder of images. The
same in Python:

    from monai.bundle import ConfigWorkflow

    workflow = ConfigWorkflow("FOLDER/configs/inference.json", workflow_type="inference", bundle_root="FOLDER")
    workflow.dataset_dir = "scans"
    workflow.initialize()
    workflow.run()

## Limits

- It knows the anatomy, modality and acquisition of its training images. On others it still draws a mask,
  which may be wrong; look at {look}.
- Volumes are segmented slice by slice at {size} px: structures of about a model pixel are lost.
- Validation figures, where there are any, come from patients of the same source as the training.
"""


# --- words -----------------------------------------------------------------------------------------


def _licence(terms: Terms, words: str = "Licence of the weights") -> list[str]:
    return [f"{words}: {terms.licence or _UNKNOWN_LICENCE}", *_restriction(terms)]


def _restriction(terms: Terms) -> list[str]:
    return [f"Terms of use: {terms.restriction.rstrip('.')}."] if terms.restriction else []


def _source_lines(terms: Terms) -> list[str]:
    """Each data set with what is known of it."""
    parts = [
        (one.name, one.licence and f"licence: {one.licence}", one.address, one.citation)
        for one in terms.sources
    ]
    return ["; ".join(part for part in known if part) for known in parts]


def _modality(config: TrainConfig) -> str:
    return _MODALITIES.get(config.modality, config.modality)


def _image_channels(config: TrainConfig) -> list[str]:
    return ["image"] if config.generator.image_channels == 1 else ["red", "green", "blue"]


def _classes(config: TrainConfig) -> list[str]:
    """Background and the labels, in the order of the network's channels."""
    names = {label.value: label.name for label in config.labels}
    values = range(1, config.generator.num_classes)
    return ["background"] + [names.get(value, f"label {value}") for value in values]


def _list(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _intensity(config: TrainConfig) -> str:
    rule = config.intensity
    if rule.percentiles is not None:
        low, high = rule.percentiles
        part = f" (its central {rule.central:.0%})" if rule.central else ""
        text = f"percentiles {low:g} and {high:g} of each image{part} become -1 and 1"
    else:
        text = f"{rule.low:g} to {rule.high:g} {rule.unit}".rstrip() + " become -1 to 1"
    first = [name.replace("_", " ") for name in rule.corrections]
    shape = "; stretched to a square" if config.squash else "; cut to the body" if config.body else ""
    return ", then ".join([*first, text]) + shape


def _plain(facts: dict[str, Any]) -> dict[str, Any]:
    """The facts that fit into a table: no nested ones."""
    return {key: value for key, value in facts.items() if isinstance(value, str | int | float | bool)}


def _validation_figures(facts: dict[str, Any]) -> dict[str, float]:
    numbers = {key: value for key, value in facts.items() if isinstance(value, int | float)}
    return {
        key: value for key, value in numbers.items() if key.startswith("validation") or key.endswith("_dice")
    }


def _shown(value: str | int | float | bool) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).replace("|", "\\|")
