"""Every setting as data: frozen dataclasses with the presets behind ``--modality`` and ``--preset``."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import dacite

from sgan_core.cohort import MODALITIES, Intensity, Label, check_corrections
from sgan_core.errors import InputError
from sgan_core.looks import LOOKS, AppearanceConfig

SIZES = (32, 64, 128, 256, 512)
NETWORKS = ("residual", "nnunet")  # of the student: networks.segmenter
LARGEST_STUDENT = 2048  # pixels along a side; a slip of the keyboard would ask for more memory than there is


def _power_of_two_sizes(size: int) -> None:
    if size not in SIZES:
        raise InputError(f"size is {size}, expected one of {', '.join(map(str, SIZES))}")


def _official_channels(size: int) -> dict[int, int]:
    table = {4: 512, 8: 512, 16: 512, 32: 512, 64: 512, 128: 256, 256: 128, 512: 64}
    return {resolution: width for resolution, width in table.items() if resolution <= size}


@dataclass(frozen=True)
class GeneratorConfig:
    """StyleGAN2 with an image and a label branch (docs/method.md section 1)."""

    size: int = 256
    image_channels: int = 3
    num_classes: int = 8  # label logits, channel 0 is background
    z_dim: int = 512
    w_dim: int = 512
    mapping_layers: int = 8
    channels: dict[int, int] = field(default_factory=lambda: _official_channels(256))  # resolution -> width
    noise: bool = True  # per-pixel noise maps; they decide labels, so the small presets do without

    def __post_init__(self) -> None:
        _power_of_two_sizes(self.size)
        if self.image_channels not in (1, 3):
            raise InputError(f"image_channels is {self.image_channels}, expected 1 or 3")
        if self.num_classes < 2:
            raise InputError(f"num_classes is {self.num_classes}, expected background and at least one label")
        wanted = [2**power for power in range(2, self.size.bit_length())]
        if sorted(self.channels) != wanted:
            raise InputError(f"channels has resolutions {sorted(self.channels)}, expected {wanted}")

    @property
    def num_ws(self) -> int:
        """Number of style inputs: one w for each style layer of W+."""
        return 2 * (self.size.bit_length() - 1) - 2


@dataclass(frozen=True)
class ImageDiscriminatorConfig:
    """D_r: real or generated image? Sees every image."""

    channels: dict[int, int] = field(default_factory=lambda: _official_channels(256))
    std_group: int = 4  # consecutive samples that share one minibatch standard deviation


@dataclass(frozen=True)
class PairDiscriminatorConfig:
    """D_m: real or generated image + label pair? Sees only labelled pairs as real."""

    scales: int = 3
    layers: int = 3
    base_channels: int = 64
    norm: str = "spectral_instance"  # "spectral": instance norm erases the area of a label
    encoding: str = (
        "official"  # "official": one-hot in {-1, 1} against raw logits; "softmax": both soft in [-1, 1]
    )

    def __post_init__(self) -> None:
        if self.norm not in ("spectral", "spectral_instance"):
            raise InputError(f"norm is {self.norm!r}, expected 'spectral' or 'spectral_instance'")
        if self.encoding not in ("official", "softmax"):
            raise InputError(f"encoding is {self.encoding!r}, expected 'official' or 'softmax'")


@dataclass(frozen=True)
class EncoderConfig:
    """E(x) -> w_plus: feature pyramid with a head for each style."""

    trunk: str = "resnet50"  # "resnet50" | "resnet18"
    width: int = 64  # channels of the first trunk stage; 64 is the published ResNet
    fpn_channels: int = 512
    head: str = (
        "tower"  # "tower": strided convolutions per style (pSp); "light": pooled to 4x4, one linear layer
    )
    norm: str = "batch"  # "batch" | "group"
    stem_stride: bool = True  # False keeps full resolution in the stem, for images of 32 to 64 px
    from_mean_w: bool = False  # predict the offset from the mean w

    def __post_init__(self) -> None:
        for name, allowed in (
            ("trunk", ("resnet50", "resnet18")),
            ("head", ("tower", "light")),
            ("norm", ("batch", "group")),
        ):
            if getattr(self, name) not in allowed:
                raise InputError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(allowed)}")


@dataclass(frozen=True)
class AugmentConfig:
    """Random transforms before the discriminators; the same for the image and the label of a pair."""

    adaptive: bool = False  # ADA: the strength follows D_r's certainty on real images
    target: float = 0.6  # ADA's r_t = E[sign(D_r(real))]
    adapt_kimg: float = 100.0  # thousand images in which the strength can go from 0 to 1
    image_strength: float = 0.0  # probability of each transform before D_r (the start value when adaptive)
    image_max: float = 0.6
    pair_strength: float = 0.0  # probability of each transform before D_m
    shift: float = 0.08  # fraction of the image side
    scale: float = 0.12  # log range: factors in exp(+-scale)
    rotation_deg: float = 8.0
    contrast: float = 0.15
    flip: bool = False  # left-right; wrong for CT and X-ray, where sides have a meaning
    fill: str = "air"  # what comes in from outside: "air" (-1), or "border", the outermost pixels repeated

    def __post_init__(self) -> None:
        if self.fill not in ("air", "border"):
            raise InputError(f"augment: fill is {self.fill!r}, expected 'air' or 'border'")


@dataclass(frozen=True)
class GanConfig:
    """Stage 1 (Eq. 1-3)."""

    batch: int = 16
    max_images: int = 800_000 * 16
    generator_lr: float = 0.002
    image_lr: float = 0.002
    pair_lr: float = 0.002
    pair_loss: str = "hinge"  # "logistic" | "hinge"
    pair_d_weight: float = 1.0  # of D_m's own loss (Eq. 2); 0.5 in the authors' code: (real + fake) / 2
    pair_weight: float = 1.0
    pair_ramp_images: int = 0  # the weight grows linearly from 0 over this many images
    pair_label_blur: bool = False  # the same small blur on real and generated labels
    mismatch_weight: float = 0.0  # real image with another image's label as an extra negative of D_m
    feature_matching: float = 0.0  # the authors' code: 2
    image_r1: float = 10.0
    pair_r1: float = 10.0  # 0: none
    r1_every: int = 16
    path_weight: float = 2.0
    path_every: int = 4
    path_from: float = 0.0  # share of the stage, by images or time, after which path length starts
    path_batch_shrink: int = 2
    style_mixing: float = 0.9
    ema_half_life_images: float = 5_000.0
    fade_images: int = 0  # after --init-from a smaller model: the new block of D_r is faded in
    augment: AugmentConfig = AugmentConfig()

    def __post_init__(self) -> None:
        if self.pair_loss not in ("logistic", "hinge"):
            raise InputError(f"pair_loss is {self.pair_loss!r}, expected 'logistic' or 'hinge'")
        if self.batch < 2:
            raise InputError(f"batch is {self.batch}, expected at least 2")


@dataclass(frozen=True)
class EncoderTrainConfig:
    """Stage 2 (Eq. 4-6), the generator frozen."""

    batch: int = 16
    max_images: int = 200_000
    lr: float = 1e-3
    perceptual_weight: float = 10.0
    mse_weight: float = 1.0  # lambda_1
    ce_weight: float = 1.0
    dice_weight: float = 1.0
    ce_temperature: float = 0.1
    dice_temperature: float = 0.3
    latent_weight: float = 0.0  # synthetic (image, w) pairs: the squared distance of w
    appearance_share: float = 0.0  # of the images that the encoder sees in a random look
    clip_norm: float = 5.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.appearance_share <= 1.0:
            raise InputError(f"encoder_train: appearance_share is {self.appearance_share}, expected 0 to 1")


@dataclass(frozen=True)
class StudentTrainConfig:
    """The student: a feed-forward U-Net on labelled slices, under random appearance."""

    size: int | None = (
        None  # pixels along a side of its slices, a multiple of the generator's; None: the generator's
    )
    growth: dict[int, float] = field(default_factory=dict)  # smaller sizes first -> their share of the stage
    network: str = "residual"  # "residual" (a residual U-Net) | "nnunet" (nnU-Net's, 2.4 times the time)
    channels: tuple[int, ...] = (24, 48, 96, 192)  # width of each level
    batch: int = 16
    max_images: int = 160_000
    lr: float = 1e-3  # Adam, cosine decay to a hundredth over the stage, by images or time
    appearance: bool = True  # images are shown in random looks
    looks: AppearanceConfig = AppearanceConfig()
    strength: float = 0.8  # probability of each geometric transform
    geometry: AugmentConfig = AugmentConfig(contrast=0.0, shift=0.12, scale=0.3, rotation_deg=12.0)
    negative_share: float = 0.05  # of the images: replaced by pictures without the organ, labelled empty
    frame_share: float = 0.0  # of the images: with the black frame of a collimator, which may cut the organ
    ema_half_life_images: float = 2_000.0

    def __post_init__(self) -> None:
        if self.batch < 1 or self.max_images < 1:
            raise InputError(
                f"student: {self.max_images} images in batches of {self.batch}, expected at least 1"
            )
        if not 0.0 < self.lr <= 1.0:
            raise InputError(f"student: lr is {self.lr}, expected above 0, at most 1")
        if self.network not in NETWORKS:
            raise InputError(f"student: network is {self.network!r}, expected one of {', '.join(NETWORKS)}")
        least = 3 if self.network == "nnunet" else 2
        if len(self.channels) < least:
            raise InputError(
                f"student: channels is {self.channels}, expected the widths of {least} levels or more"
            )
        if min(self.channels) < 1:
            raise InputError(f"student: channels is {self.channels}, expected widths of 1 or more")
        for size in (*self.growth, *([] if self.size is None else [self.size])):
            if not 1 <= size <= LARGEST_STUDENT:
                raise InputError(f"student: size is {size:.6g}, expected 1 to {LARGEST_STUDENT}")
        shares = self.growth.values()
        if not (all(share > 0.0 for share in shares) and sum(shares) < 1.0):
            raise InputError(
                f"student: growth is {self.growth}, expected shares above 0 that leave some for the full size"
            )
        for name in ("strength", "negative_share", "frame_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"student: {name} is {getattr(self, name)}, expected a share from 0 to 1")


@dataclass(frozen=True)
class InversionConfig:
    """Test-time optimisation in W+ (Eq. 7-8)."""

    steps: int = 200  # where inversion gives the mask
    check_steps: int = 200  # where it only checks the student's
    lr: float = 0.1
    ramp_up: float = 0.05
    ramp_down: float = 0.25
    perceptual_weight: float = 1.0
    mse_weight: float = 0.1  # lambda_3
    encoder_weight: float = 1e-3  # lambda_2
    start_weight: float = 0.0  # of the squared distance from the encoder's start, in place of lambda_2
    batch: int = 16  # slices optimised together
    optimizer: str = "adam"  # "adam" (the paper's) | "lbfgs" (fewer steps; knows no lr and no ramps)
    tolerance: float = (
        0.0  # a slice is done when its loss falls by less than this share in ``patience`` steps
    )
    patience: int = 10

    def __post_init__(self) -> None:
        if self.optimizer not in ("adam", "lbfgs"):
            raise InputError(f"optimizer is {self.optimizer!r}, expected 'adam' or 'lbfgs'")
        if not 0.0 <= self.tolerance < 1.0:
            raise InputError(f"tolerance is {self.tolerance}, expected a share from 0 to below 1")
        if self.patience < 1:
            raise InputError(f"patience is {self.patience}, expected 1 or more")


@dataclass(frozen=True)
class TrainConfig:
    """One training run; written beside every checkpoint and into the bundle."""

    modality: str = "ct"
    preset: str = "paper"
    generator: GeneratorConfig = GeneratorConfig()
    image_discriminator: ImageDiscriminatorConfig = ImageDiscriminatorConfig()
    pair_discriminator: PairDiscriminatorConfig = PairDiscriminatorConfig()
    encoder: EncoderConfig = EncoderConfig()
    gan: GanConfig = GanConfig()
    encoder_train: EncoderTrainConfig = EncoderTrainConfig()
    student_train: StudentTrainConfig = StudentTrainConfig()
    inversion: InversionConfig = InversionConfig()
    perceptual: str = "efficientnet-lite0"
    intensity: Intensity = Intensity(percentiles=(0.5, 99.5))
    squash: bool = False  # images are stretched to the square instead of padded
    body: bool = False  # air beside the body is cut off, so that it fills the square (imaging.slices)
    labels: tuple[Label, ...] = ()
    labelled: int = 8  # labelled patients
    seed: int = 0
    gan_share: float = 0.7  # of the time limit
    encoder_share: float = 0.15  # the student has the rest
    checkpoint_minutes: float = 1.0
    evaluate_images: int = 20_000
    amp: bool = True  # half precision on a GPU; the student also on a CPU that has bfloat16

    def __post_init__(self) -> None:
        check_corrections(self.intensity, self.modality, source="config")
        gan = self.gan
        if self.pair_discriminator.encoding == "official" and (
            gan.augment.pair_strength or gan.mismatch_weight or gan.pair_label_blur
        ):
            raise InputError(
                "encoding is 'official' (raw logits); pair_strength, mismatch_weight and pair_label_blur need "
                "label probabilities. Leave them at 0, or choose the encoding 'softmax'."
            )

        size, smaller = self.student_size, list(self.student_train.growth)
        if size % self.generator.size:
            raise InputError(
                f"student: size is {size}, expected a multiple of the generator's {self.generator.size}"
            )
        deepest = 2 ** (len(self.student_train.channels) - 1)
        if smaller != sorted(smaller) or any(size % part or part % deepest for part in [*smaller, size]):
            raise InputError(
                f"student: growth is {smaller} to {size}, expected rising multiples of {deepest} that divide {size}"
            )

    @property
    def student_size(self) -> int:
        """Pixels along a side of the slices that are prepared: the student's, of which the generator sees averages."""
        return self.student_train.size or self.generator.size

    def to_dict(self) -> dict[str, Any]:
        """Plain data for YAML, JSON and safetensors headers."""
        return dataclasses.asdict(self)

    @staticmethod
    def from_dict(values: dict[str, Any]) -> TrainConfig:
        """Read back what ``to_dict`` wrote.

        Raises InputError for an unknown or wrong setting.
        """
        return from_dict(TrainConfig, values)


def from_dict(kind: type[Any], values: dict[str, Any]) -> Any:
    """Build a config dataclass from plain data; JSON turned keys into text and tuples into lists."""
    hooks = {
        dict[int, int]: lambda table: {int(key): int(value) for key, value in table.items()},
        dict[int, float]: lambda table: {int(key): float(value) for key, value in table.items()},
    }
    try:
        config = dacite.Config(strict=True, cast=[tuple, float], type_hooks=hooks)
        return dacite.from_dict(kind, values, config=config)
    # Of whatever stands in a file: 1e999 as a whole number, a list as a table
    except (dacite.DaciteError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
        raise InputError(f"config: {error}") from error


def merge(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``values`` with ``changes`` laid over it, table by table. ``channels`` and ``growth`` are replaced as a whole."""
    merged = dict(values)
    for key, change in changes.items():
        tables = isinstance(change, dict) and isinstance(merged.get(key), dict)
        nested = tables and key not in ("channels", "growth")
        merged[key] = merge(merged[key], change) if nested else change
    return merged


SCANS = ("ct", "mr")  # modalities whose images are volumes
_NEGATIVES = dict.fromkeys(SCANS, 0.05)  # share of pictures without the organ; others are asked for as such


def _student(size: int, modality: str, move: dict[str, Any]) -> dict[str, Any]:
    """The student's settings at a size: what it reads grows from 64 px on."""
    halves = {size // 4: 0.5, size // 2: 0.3} if size >= 256 else {size // 2: 0.6}
    return {
        "size": size,
        "growth": halves if size >= 128 else {},
        "channels": (16, 32, 64, 128, 256),
        "looks": dataclasses.asdict(LOOKS[modality]),
        "negative_share": _NEGATIVES.get(modality, 0.0),
        "frame_share": 0.3 if modality == "xray" else 0.0,
        "geometry": move | ({"rotation_deg": 180.0} if modality == "dermoscopy" else {}),
    }


def _small_presets(size: int, move: dict[str, Any]) -> dict[str, Any]:
    """``tiny`` (64 px), ``small`` (128 px): made for few images and a CPU (docs/method.md section 6)."""
    table = {4: 128, 8: 128, 16: 64, 32: 32, 64: 16}
    if size > 64:
        table = {4: 256, 8: 256, 16: 128, 32: 96, 64: 64, 128: 32, 256: 32, 512: 16}
    channels = {resolution: width for resolution, width in table.items() if resolution <= size}
    return {
        "generator": {"z_dim": 128, "w_dim": 128, "mapping_layers": 4, "channels": channels, "noise": False},
        "image_discriminator": {"channels": channels},
        "pair_discriminator": {
            "scales": 2,
            "layers": 3,
            "base_channels": 24 if size <= 64 else 32,
            "norm": "spectral",
            "encoding": "softmax",
        },
        "encoder": {
            "trunk": "resnet18",
            "width": 24 if size <= 64 else 32,
            "fpn_channels": 64,
            "head": "light",
            "norm": "group",
            "stem_stride": size >= 64,  # a full-resolution stem costs nine times as much at 64 px
            "from_mean_w": True,
        },
        "gan": {
            "max_images": 300_000,
            "pair_lr": 0.0005,
            "pair_loss": "logistic",
            "pair_weight": 0.5,
            "pair_ramp_images": 50_000,
            "pair_label_blur": True,
            "mismatch_weight": 0.25,
            "image_r1": 0.1 * (size / 64) ** 2,
            "pair_r1": 0.0,
            "path_every": 16,
            "path_from": 0.66,
            "fade_images": 20_000,
            "augment": {"adaptive": True, "pair_strength": 0.8} | move,
        },
        "encoder_train": {
            "max_images": 100_000,
            "perceptual_weight": 1.0,
            "ce_weight": 0.5,
            "dice_weight": 0.5,
            "ce_temperature": 1.0,
            "dice_temperature": 1.0,
            "latent_weight": 0.5,
            "appearance_share": 0.5,
        },
        # Less loss than 200 steps of Adam, and as good labels (docs/performance.md).
        "inversion": {
            "optimizer": "lbfgs",
            "steps": 120,
            "check_steps": 15,
            "encoder_weight": 0.0,
            "start_weight": 0.03,
            "tolerance": 0.005,
        },
    }


def _large_presets(preset: str, size: int, move: dict[str, Any]) -> dict[str, Any]:
    """``paper`` (the equations as they stand) or ``official`` (the authors' code); docs/method.md section 6."""
    channels = _official_channels(size)
    own: dict[str, Any] = {"gan": {"pair_d_weight": 0.5, "feature_matching": 2.0, "augment": move}}
    if preset == "paper":
        own = {
            "gan": {"pair_loss": "logistic", "pair_r1": 0.0, "augment": {"adaptive": True} | move},
            "encoder_train": {"perceptual_weight": 1.0, "mse_weight": 0.1},  # in the authors' proportion
        }
    shared = {
        "generator": {"channels": channels},
        "image_discriminator": {"channels": channels},
    }
    return merge(shared, own)


def preset(
    name: str, *, modality: str, num_classes: int, size: int | None = None, student_size: int | None = None
) -> TrainConfig:
    """The settings behind ``--preset`` for a modality.

    name: tiny (64 px), small (128 px), paper or official (256 px); ``size`` overrides this resolution, which is the
    generator's. student_size: the student's; left out it is twice the generator's in tiny and small, the same in the
    others. num_classes: labels and background. Raises InputError for unknown names, and for sizes that do not fit.
    """
    if modality not in MODALITIES:
        raise InputError(f"modality is {modality!r}, expected one of {', '.join(MODALITIES)}")
    sizes = {"tiny": 64, "small": 128, "paper": 256, "official": 256}
    if name not in sizes:
        raise InputError(f"preset is {name!r}, expected one of {', '.join(sizes)}")
    size = size or sizes[name]
    _power_of_two_sizes(size)
    of = MODALITIES[modality]
    move = {key: of[key] for key in ("flip", "fill")}
    own = _small_presets(size, move) if name in ("tiny", "small") else _large_presets(name, size, move)
    if student_size is None:
        student_size = min(2 * size, SIZES[-1]) if name in ("tiny", "small") else size
    own["student_train"] = _student(student_size, modality, move)
    own["student_train"]["network"] = "residual" if name in ("tiny", "small") else "nnunet"
    values = merge(TrainConfig().to_dict(), own)
    generator = {"size": size, "image_channels": of["image_channels"], "num_classes": num_classes}
    changes = {"modality": modality, "preset": name, "generator": generator, "body": of["body"]}
    changes["intensity"] = dataclasses.asdict(of["intensity"])
    return TrainConfig.from_dict(merge(values, changes))
