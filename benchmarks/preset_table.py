"""Write every setting of the presets, and where its value is from, into docs/method.md.

    python benchmarks/preset_table.py

A test fails when the document and the presets differ, and when a setting has no origin here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sgan_core.config import preset

DOCUMENT = Path(__file__).parents[1] / "docs" / "method.md"
BEGIN = "<!-- table of presets: written by benchmarks/preset_table.py -->"
END = "<!-- end of the table of presets -->"
PRESETS = ("tiny", "small", "paper", "official")

# An origin is one of the first three, or "ours: " and why; words behind a comma say more.
PAPER, CODE, STYLEGAN2 = "paper", "authors' code", "StyleGAN2"
KINDS = (PAPER, CODE, STYLEGAN2, "ours: ")

SMALLER = "ours: few images and a CPU"
SAVES = "ours: a CPU's time"
BLUNT = "ours: few images; D_r would learn them by heart (Karras et al. 2020, ADA)"
LITE0 = "ours: needs no download; LPIPS needs its backbone as a file"

# Setting -> origin in all presets, or (paper and official, tiny and small), or (paper, official, tiny and small).
ORIGINS: dict[str, str | tuple[str, ...]] = {
    "generator.size": (CODE, SMALLER),
    "generator.z_dim": (STYLEGAN2, "ours: 10 styles of 512 numbers exceed the pixels of 64 x 64"),
    "generator.w_dim": (STYLEGAN2, "ours: as z_dim"),
    "generator.mapping_layers": (STYLEGAN2, "ours: as z_dim"),
    "generator.channels": (STYLEGAN2, SAVES),
    "generator.noise": (STYLEGAN2, "ours: noise decides labels, two draws at one w disagree"),
    "image_discriminator.channels": (STYLEGAN2, SAVES),
    "image_discriminator.std_group": STYLEGAN2,
    "pair_discriminator.scales": (CODE, "ours: small images"),
    "pair_discriminator.layers": CODE,
    "pair_discriminator.base_channels": (CODE, SAVES),
    "pair_discriminator.norm": (CODE, "ours: instance norm erases how large a label is"),
    "pair_discriminator.encoding": (CODE, "ours: hard real against soft generated labels is a give-away"),
    "encoder.trunk": (CODE, SMALLER),
    "encoder.width": (CODE, SAVES),
    "encoder.fpn_channels": (CODE, SAVES),
    "encoder.head": (CODE, "ours: fewer than half the parameters"),
    "encoder.norm": (CODE, "ours: the same for any batch"),
    "encoder.stem_stride": CODE,
    "encoder.from_mean_w": (CODE, "ours: the first reconstruction is the mean image"),
    "gan.batch": CODE,
    "gan.max_images": (CODE, SMALLER),
    "gan.generator_lr": f"{STYLEGAN2}, Adam (0, 0.99); 0.0016 with path length every 4 steps, 0.00188 every 16",
    "gan.image_lr": f"{STYLEGAN2}; 0.00188 with R1 every 16 steps",
    "gan.pair_lr": (
        f"{CODE}; 0.00188 with R1 (`official`)",
        "ours: few pairs, which a quick D_m learns by heart",
    ),
    "gan.pair_loss": ("paper, Eq. 2, non-saturating", CODE, "paper, Eq. 2, non-saturating"),
    "gan.pair_d_weight": ("paper, Eq. 2", f"{CODE}: (real + fake) / 2", "paper, Eq. 2"),
    "gan.pair_weight": ("paper, Eq. 3", "ours: few pairs, D_m is soon sure of them"),
    "gan.pair_ramp_images": ("paper, none", "ours: images first, then their labels"),
    "gan.pair_label_blur": ("paper, none", "ours: takes away how sharp real labels are"),
    "gan.mismatch_weight": ("paper, none", "ours: 8 patients teach little otherwise"),
    "gan.feature_matching": ("paper, none", CODE, "paper, none"),
    "gan.image_r1": (STYLEGAN2, "ours: 10 is for 256 px; grows with the area"),
    "gan.pair_r1": ("paper, none", f"{CODE}, by sample and patch mean", "paper, none"),
    "gan.r1_every": STYLEGAN2,
    "gan.path_weight": STYLEGAN2,
    "gan.path_every": (STYLEGAN2, SAVES),
    "gan.path_from": (STYLEGAN2, SAVES),
    "gan.path_batch_shrink": STYLEGAN2,
    "gan.style_mixing": STYLEGAN2,
    "gan.ema_half_life_images": f"{CODE}, 0.5^(32 / 10000) a step; the ramp at the start is ours",
    "gan.fade_images": ("paper, not grown", "ours: --init-from a smaller model"),
    "gan.augment.adaptive": (BLUNT, CODE, BLUNT),
    "gan.augment.target": "ours: ADA's r_t of Karras et al. 2020",
    "gan.augment.adapt_kimg": "ours: ADA's 500, faster for short runs",
    "gan.augment.image_strength": "paper, none to begin with",
    "gan.augment.image_max": "ours: strong augmentation leaks into images (Karras et al. 2020, ADA)",
    "gan.augment.pair_strength": ("paper, none", "ours: 8 patients teach little otherwise"),
    "gan.augment.shift": "ours: where a scanner may put a patient",
    "gan.augment.scale": "ours: sizes of patients",
    "gan.augment.rotation_deg": "ours: how patients lie",
    "gan.augment.contrast": "ours: contrast of scanners",
    "encoder_train.batch": CODE,
    "encoder_train.max_images": ("ours: a shorter stage; the best weights are kept", SMALLER),
    "encoder_train.lr": f"{CODE}, cosine to a hundredth; Ranger there, Adam here",
    "encoder_train.perceptual_weight": (
        "paper, Eq. 5; not calibrated for Lite0",
        f"{CODE}, made for LPIPS; not calibrated for Lite0",
        "paper, Eq. 5",
    ),
    "encoder_train.mse_weight": (f"{CODE}: a tenth of LPIPS's weight", CODE, "ours: as the perceptual term"),
    "encoder_train.ce_weight": ("paper, Eq. 4", "ours: labels alone drive w off the manifold"),
    "encoder_train.dice_weight": ("paper, Eq. 4", "ours: labels alone drive w off the manifold"),
    "encoder_train.ce_temperature": (CODE, "ours: 0.1 fits raw logits only"),
    "encoder_train.dice_temperature": (CODE, "ours: 0.3 fits raw logits only"),
    "encoder_train.latent_weight": ("paper, none", "ours: generated images have a known w"),
    "encoder_train.appearance_share": ("paper, none", "ours: a start in other modalities too"),
    "encoder_train.clip_norm": f"{CODE}, 5 for labelled images (2 for others)",
    "student_train.size": (
        "ours: that of the generator, and of the pictures",
        "ours: masks finer than what the generator draws",
    ),
    "student_train.growth": (
        "ours: the paper has no student",
        "ours: most of what is learned at 64 px holds at larger sizes",
    ),
    "student_train.network": ("ours: nnU-Net's, better on CT (docs/results.md)", "ours: a CPU's time"),
    "student_train.channels": "ours: the paper has no student",
    "student_train.batch": "ours: as the GAN's",
    "student_train.max_images": "ours: minutes on a CPU",
    "student_train.lr": "ours: Adam's usual",
    "student_train.appearance": "ours: reads other modalities",
    "student_train.strength": "ours: 8 patients teach little otherwise",
    "student_train.geometry.shift": "ours: stronger than D_r's, there is no give-away",
    "student_train.geometry.scale": "ours: stronger than D_r's, there is no give-away",
    "student_train.geometry.rotation_deg": "ours: stronger than D_r's, there is no give-away",
    "student_train.geometry.contrast": "ours: the random looks do that",
    "student_train.negative_share": "ours: so that it can say that nothing is there",
    "student_train.frame_share": "ours: 0.3 of X-rays, a collimator's black edges are no lung",
    "student_train.ema_half_life_images": "ours: smooths the last steps",
    "inversion.steps": (CODE, "ours: less loss than 200 of Adam, docs/performance.md"),
    "inversion.check_steps": ("ours: as steps", "ours: enough where the student draws the mask"),
    "inversion.lr": CODE,
    "inversion.ramp_up": CODE,
    "inversion.ramp_down": CODE,
    "inversion.perceptual_weight": "paper, Eq. 7",
    "inversion.mse_weight": f"{CODE}: lambda_3 of Eq. 7",
    "inversion.encoder_weight": (f"{CODE}: lambda_2 of Eq. 8", "ours: start_weight instead"),
    "inversion.start_weight": ("paper, none", "ours: as good labels, no pass of the encoder in a step"),
    "inversion.batch": "ours: the authors take one slice at a time",
    "inversion.optimizer": (CODE, "ours: fewer steps"),
    "inversion.tolerance": ("paper, none", "ours: saves steps of slices that are done"),
    "inversion.patience": "ours: has effect with a tolerance only",
    "perceptual": LITE0,
    "labelled": "paper, 8 volumes of table 3",
    "gan_share": "ours: of a time limit",
    "encoder_share": "ours: of a time limit",
    "checkpoint_minutes": "ours: what a stopped run may lose",
    "evaluate_images": "ours: between two validations",
    "amp": "ours: bfloat16 on a GPU; the student also on a CPU that has it",
}
# Not a preset's matter: beginnings of the names of settings that come from the modality, the data or the command line,
# or that a table shares with another one and does not use.
ELSEWHERE = (
    "modality",
    "preset",
    "generator.image_channels",
    "generator.num_classes",
    "gan.augment.flip",
    "gan.augment.fill",
    "student_train.geometry.flip",
    "student_train.geometry.fill",
    "student_train.looks.",
    "intensity.",
    "squash",
    "body",
    "labels",
    "seed",
    *(f"student_train.geometry.{name}" for name in ("adaptive", "target", "adapt_kimg", "image_", "pair_")),
)


def settings(name: str) -> dict[str, Any]:
    """The values of a preset by dotted name."""
    found: dict[str, Any] = {}

    def collect(values: dict[str, Any], path: str) -> None:
        for key, value in values.items():
            if isinstance(value, dict) and key not in ("channels", "growth"):
                collect(value, f"{path}{key}.")
            else:
                found[path + key] = value

    collect(preset(name, modality="ct", num_classes=2).to_dict(), "")
    return found


def origins(setting: str) -> tuple[str, str, str]:
    """Where the values of paper, official, and of tiny and small are from."""
    found = ORIGINS[setting]
    parts = (found,) if isinstance(found, str) else found
    return {1: parts * 3, 2: (parts[0], *parts), 3: parts}[len(parts)]


def table() -> str:
    """The table in Markdown."""
    values = {name: settings(name) for name in PRESETS}
    lines = [
        "| setting | " + " | ".join(f"`{name}`" for name in PRESETS) + " | from |",
        "| --- |" + " ---: |" * len(PRESETS) + " --- |",
    ]
    for setting in ORIGINS:
        cells = (_text(values[name][setting]) for name in PRESETS)
        lines.append(f"| `{setting}` | {' | '.join(cells)} | {_from(setting)} |")
    return "\n".join(lines)


def _from(setting: str) -> str:
    """Origins, the presets that share one named together."""
    paper, official, own = origins(setting)
    by_origin: dict[str, list[str]] = {}
    for names, origin in ((["paper"], paper), (["official"], official), (["tiny", "small"], own)):
        by_origin.setdefault(origin, []).extend(names)
    if len(by_origin) == 1:
        return paper
    return "; ".join(f"{', '.join(f'`{n}`' for n in names)}: {origin}" for origin, names in by_origin.items())


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict) and all(
        isinstance(part, float) for part in value.values()
    ):  # shares by pixels
        return ", ".join(f"{part:g} at {pixels} px" for pixels, part in value.items())
    if isinstance(value, dict):  # widths from 4 px up
        return " ".join(map(str, value.values()))
    if isinstance(value, (list, tuple)):
        return " ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int) else str(value)


def written(document: str) -> str:
    """The document with the table in its place."""
    before, rest = document.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    DOCUMENT.write_text(written(DOCUMENT.read_text(encoding="utf-8")), encoding="utf-8")
