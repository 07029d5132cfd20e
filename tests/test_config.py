"""The presets and what a config refuses."""

from __future__ import annotations

import json
import math

import pytest

from sgan_core.cohort import MODALITIES, Intensity, Label
from sgan_core.config import (
    SIZES,
    EncoderConfig,
    GanConfig,
    GeneratorConfig,
    PairDiscriminatorConfig,
    StudentTrainConfig,
    TrainConfig,
    merge,
    preset,
)
from sgan_core.errors import InputError
from sgan_core.known_models import MODELS, SETTINGS

PRESETS = ("tiny", "small", "paper", "official")


@pytest.mark.parametrize("modality", sorted(MODALITIES))
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_survives_json(name, modality):
    config = preset(name, modality=modality, num_classes=3)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert config.generator.num_classes == 3
    assert config.generator.image_channels == (1 if modality in ("ct", "mr", "xray") else 3)


def test_labels_and_intensity_survive_json():
    labels = (Label(1, "liver", (221, 130, 101), "10200004", (63, 64)),)
    config = TrainConfig(labels=labels, intensity=Intensity(-160.0, 240.0, "HU"))
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_exists_at_every_size(name, size):
    config = preset(name, modality="ct", num_classes=2, size=size)
    assert config.generator.size == size
    assert max(config.generator.channels) == max(config.image_discriminator.channels) == size


@pytest.mark.parametrize("modality", ["ct", "xray"])
@pytest.mark.parametrize("name", PRESETS)
def test_no_flips_where_sides_have_a_meaning(name, modality):
    assert preset(name, modality=modality, num_classes=2).gan.augment.flip is False


@pytest.mark.parametrize("name", ["tiny", "small", "paper"])
def test_photographs_may_be_flipped(name):
    assert preset(name, modality="dermoscopy", num_classes=2).gan.augment.flip is True


@pytest.mark.parametrize("name", ["tiny", "small"])
def test_own_presets_avoid_the_known_traps(name):
    """Noise decides labels, instance norm erases area, hard labels give themselves away."""
    config = preset(name, modality="ct", num_classes=2)
    assert not config.generator.noise
    assert config.generator.z_dim == config.generator.w_dim == 128
    assert config.generator.mapping_layers == 4
    pair = config.pair_discriminator
    assert (pair.norm, pair.encoding, pair.scales) == ("spectral", "softmax", 2)
    assert config.gan.pair_label_blur
    assert config.gan.feature_matching == 0.0
    assert config.gan.image_r1 < 1.0
    assert config.gan.style_mixing == 0.9
    assert config.encoder.from_mean_w
    assert config.encoder.norm == "group"
    assert config.encoder_train.latent_weight > 0


def test_official_preset_has_the_authors_numbers():
    config = preset("official", modality="face", num_classes=8)
    gan, train, inversion = config.gan, config.encoder_train, config.inversion
    assert (gan.pair_loss, gan.feature_matching, gan.image_r1, gan.pair_r1) == ("hinge", 2.0, 10.0, 10.0)
    assert gan.pair_d_weight == 0.5  # (real + fake) / 2
    assert (gan.r1_every, gan.path_weight, gan.path_every, gan.path_batch_shrink) == (16, 2.0, 4, 2)
    assert (config.pair_discriminator.scales, config.pair_discriminator.norm) == (3, "spectral_instance")
    assert (train.perceptual_weight, train.mse_weight, train.ce_temperature, train.dice_temperature) == (
        10.0,
        1.0,
        0.1,
        0.3,
    )
    assert (inversion.lr, inversion.ramp_up, inversion.ramp_down) == (0.1, 0.05, 0.25)
    assert (inversion.mse_weight, inversion.encoder_weight, inversion.steps) == (0.1, 1e-3, 200)
    assert (config.encoder.trunk, config.encoder.head, config.encoder.fpn_channels) == (
        "resnet50",
        "tower",
        512,
    )


def test_paper_preset_has_adversarial_losses_only():
    """As Eq. 1-3 stand: D_m's loss is not halved, and its R1 is the code's."""
    gan = preset("paper", modality="ct", num_classes=2).gan
    assert (gan.feature_matching, gan.pair_loss) == (0.0, "logistic")
    assert (gan.pair_d_weight, gan.pair_r1, gan.image_r1) == (1.0, 0.0, 10.0)


def test_paper_preset_weighs_the_perceptual_term_as_eq_5_does():
    """1, and the squared error a tenth of it, as in the authors' code and in Eq. 7."""
    config = preset("paper", modality="ct", num_classes=2)
    assert (config.encoder_train.perceptual_weight, config.encoder_train.mse_weight) == (1.0, 0.1)
    assert (config.inversion.perceptual_weight, config.inversion.mse_weight) == (1.0, 0.1)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"generator": {"size": 48}}, "48"),
        ({"generator": {"image_channels": 2}}, "image_channels"),
        ({"generator": {"num_classes": 1}}, "num_classes"),
        ({"generator": {"channels": {"4": 8, "8": 8}}}, "channels"),
        ({"generator": {"channels": {"four": 8}}}, "config"),
        ({"gan": {"pair_loss": "wasserstein"}}, "wasserstein"),
        ({"gan": {"batch": 1}}, "batch"),
        ({"gan": {"batch": "many"}}, "batch"),
        ({"gan": {"learning_rate": 1.0}}, "learning_rate"),
        ({"pair_discriminator": {"norm": "batch"}}, "norm"),
        ({"pair_discriminator": {"encoding": "soft"}}, "encoding"),
        ({"encoder": {"trunk": "vgg"}}, "trunk"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_wrong_settings_are_refused_by_name(changes, word):
    with pytest.raises(InputError, match=word):
        TrainConfig.from_dict(merge(TrainConfig().to_dict(), changes))


@pytest.mark.parametrize(
    "change",
    [
        {"augment": {"pair_strength": 0.5}},
        {"mismatch_weight": 0.5},
        {"pair_label_blur": True},
    ],
)
def test_official_encoding_refuses_what_needs_probabilities(change):
    """Raw logits have no blur, no background outside the image and no overlap."""
    with pytest.raises(InputError, match="official"):
        TrainConfig.from_dict(merge(TrainConfig().to_dict(), {"gan": change}))


@pytest.mark.parametrize("correction", ["bias_correction", "equalise", "colour_constancy"])
def test_corrections_that_do_not_fit_are_refused(correction):
    changes = {"modality": "ct", "intensity": {correction: True}}
    with pytest.raises(InputError, match=f"config: {correction} is for"):
        TrainConfig.from_dict(merge(TrainConfig().to_dict(), changes))


def test_corrections_and_squash_survive_json():
    intensity = Intensity(percentiles=(1.0, 99.0), central=0.7, equalise=True)
    config = TrainConfig(modality="xray", intensity=intensity, squash=True)
    stored = json.loads(json.dumps(config.to_dict()))
    assert (stored["squash"], stored["intensity"]["equalise"], stored["intensity"]["central"]) == (
        True,
        True,
        0.7,
    )
    assert TrainConfig.from_dict(stored) == config


def test_settings_from_before_there_were_corrections_mean_none():
    stored = json.loads((MODELS / "phantom-ct-liver" / SETTINGS).read_text())["config"]
    # As the first models were written, without a student too.
    for later in ("squash", "student_train", "encoder_share"):
        del stored[later]
    for later in ("optimizer", "tolerance", "patience", "check_steps"):
        del stored["inversion"][later]
    stored["intensity"] = {"low": -160.0, "high": 240.0, "unit": "HU", "percentiles": None}
    config = TrainConfig.from_dict(stored)
    assert config.intensity == Intensity(-160.0, 240.0, "HU")
    assert (config.intensity.corrections, config.squash) == ((), False)
    assert config.inversion.optimizer == "adam"


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="huge"):
        preset("huge", modality="ct", num_classes=2)
    with pytest.raises(InputError, match="sonar"):
        preset("tiny", modality="sonar", num_classes=2)
    with pytest.raises(InputError, match="100"):
        preset("tiny", modality="ct", num_classes=2, size=100)


def test_merge_goes_table_by_table_but_replaces_channels_as_a_whole():
    values = {"a": {"x": 1, "y": 2}, "channels": {4: 8, 8: 8}, "b": 1}
    assert merge(values, {"a": {"y": 3}, "channels": {4: 2}}) == {
        "a": {"x": 1, "y": 3},
        "channels": {4: 2},
        "b": 1,
    }
    assert values["a"] == {"x": 1, "y": 2}


def test_number_of_styles():
    def styles(size: int) -> int:
        return GeneratorConfig(size=size, channels={2**p: 4 for p in range(2, size.bit_length())}).num_ws

    assert [styles(size) for size in SIZES] == [8, 10, 12, 14, 16]


def test_configs_are_frozen():
    for config in (GanConfig(), EncoderConfig(), PairDiscriminatorConfig()):
        with pytest.raises(AttributeError):
            config.batch = 3  # type: ignore[misc,union-attr]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", PRESETS)
def test_the_students_size_is_a_multiple_of_the_generators_and_grows_by_doubling(name, size):
    config = preset(name, modality="ct", num_classes=2, size=size)
    assert config.student_size % size == 0
    assert config.student_size >= size
    sizes = [*config.student_train.growth, config.student_size]
    assert all(later == 2 * earlier for earlier, later in zip(sizes, sizes[1:], strict=False))
    assert sum(config.student_train.growth.values()) < 0.85


def test_students_sizes_of_the_presets():
    found = {name: preset(name, modality="ct", num_classes=2).student_size for name in PRESETS}
    assert found == {"tiny": 128, "small": 256, "paper": 256, "official": 256}
    assert preset("tiny", modality="ct", num_classes=2, student_size=192).student_train.growth == {96: 0.6}


@pytest.mark.parametrize("size", [100, 96, 32, 0, -64])
def test_a_student_that_the_generator_cannot_follow_is_refused(size):
    with pytest.raises(InputError, match="student: size"):
        preset("tiny", modality="ct", num_classes=2, student_size=size)


@pytest.mark.parametrize(
    "growth", [{64: 1.0}, {64: 0.0}, {64: 0.7, 32: 0.2}, {48: 0.5}, {8: 0.5}, {64: 0.5, 96: 0.2}]
)
def test_growth_that_does_not_lead_to_the_size_is_refused(growth):
    config = preset("tiny", modality="ct", num_classes=2).to_dict()
    with pytest.raises(InputError, match="student: growth"):
        TrainConfig.from_dict(merge(config, {"student_train": {"growth": growth}}))


def test_a_config_without_a_student_size_has_the_generators():
    """As in models from before students had a size of their own."""
    config = preset("tiny", modality="ct", num_classes=2).to_dict()
    for name in ("size", "growth", "looks"):
        del config["student_train"][name]
    found = TrainConfig.from_dict(config)
    assert found.student_size == 64
    assert found.student_train.looks == StudentTrainConfig().looks
    assert found.student_train.growth == {}


@pytest.mark.parametrize("modality", sorted(MODALITIES))
def test_each_modality_has_its_looks(modality):
    student = preset("tiny", modality=modality, num_classes=2).student_train
    wild = modality in ("ct", "mr")
    assert (student.looks.curve > 0.0) is wild
    assert student.looks.gamma >= 0.5  # screens, windows and scanners brighten and darken every kind of image
    assert (student.negative_share > 0.0) is wild
    assert (student.looks.hair > 0.0) is (modality == "dermoscopy")
    assert (student.frame_share > 0.0) is (modality == "xray")
    assert student.geometry.rotation_deg == (180.0 if modality == "dermoscopy" else 12.0)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"growth": {0: 0.5}}, "size is 0, expected 1 to 2048"),
        ({"growth": {-64: 0.5}}, "size is -64, expected 1 to 2048"),
        ({"growth": {math.inf: 0.5}}, "infinity"),
        ({"growth": {64: math.nan}}, "growth is"),
        ({"growth": [64]}, "items"),
        ({"size": 64 * 2000}, "size is 128000, expected 1 to 2048"),
        ({"size": 64 * 10**400}, "config: "),
        ({"channels": [16, 0]}, "expected widths of 1 or more"),
        ({"looks": {"noise_std": math.nan}}, "noise_std is nan"),
        ({"looks": {"blur_px": 1e9}}, "blur_px is 1000000000.0"),
        ({"looks": {"gamma_log": [-math.inf, math.inf]}}, "gamma_log is -inf to inf"),
        ({"looks": {"contrast_factor": [math.nan, 1.0]}}, "contrast_factor is nan"),
    ],
)
def test_numbers_that_cannot_be_trained_with_are_refused(settings, words):
    """Not an error of ours, not a student of NaN, and not all memory of the machine."""
    config = preset("tiny", modality="ct", num_classes=2).to_dict()
    with pytest.raises(InputError, match=words):
        TrainConfig.from_dict(merge(config, {"student_train": settings}))
