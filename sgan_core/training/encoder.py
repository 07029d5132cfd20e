"""Stage 2: the encoder learns to invert the frozen generator (Eq. 4-6)."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgan_core.appearance import apply_looks, draw_looks
from sgan_core.config import TrainConfig
from sgan_core.networks.encoder import Encoder
from sgan_core.networks.generator import Generator, Pair
from sgan_core.networks.perceptual import Perceptual
from sgan_core.training import losses
from sgan_core.training.data import Order, SliceStore, rng
from sgan_core.training.gan import one_hot
from sgan_core.training.parallel import autocast, average_gradients, share, world_size
from sgan_core.training.schedule import Schedule


def make_encoder(config: TrainConfig, mean_w: Tensor) -> Encoder:
    """The encoder of a config; ``mean_w`` (w_dim,) is what its answers are offsets from, if the config says so."""
    generator = config.generator
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        encoder = Encoder(
            config.encoder,
            size=generator.size,
            image_channels=generator.image_channels,
            num_ws=generator.num_ws,
            w_dim=generator.w_dim,
        )
    if config.encoder.from_mean_w:
        encoder.mean_w.copy_(mean_w)
    return encoder


def label_losses(logits: Tensor, hot: Tensor, config: TrainConfig) -> dict[str, Tensor]:
    """Cross-entropy and Dice loss of Eq. 4, weighted. logits, hot: (B, K, H, W)."""
    train = config.encoder_train
    entropy = F.cross_entropy(logits / train.ce_temperature, hot.argmax(dim=1))  # H in Eq. 4
    dice = losses.soft_dice_loss((logits / train.dice_temperature).softmax(dim=1), hot)  # DC in Eq. 4
    return {"ce": train.ce_weight * entropy, "dice": train.dice_weight * dice}


def fingerprint(net: nn.Module) -> str:
    """Tells networks with other weights apart.

    Buffers do not count: the mean w is measured anew by every call, and on another processor its last bits differ.
    """
    digest = hashlib.sha256()
    for tensor in net.parameters():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


class EncoderTrainer:
    """The encoder, its optimiser and the state that a checkpoint holds."""

    name = "encoder"

    def __init__(
        self,
        config: TrainConfig,
        store: SliceStore,
        device: torch.device,
        generator: Generator,
        perceptual: Perceptual,
    ) -> None:
        self.config, self.train, self.device, self.store = config, config.encoder_train, device, store
        self.of = fingerprint(generator)  # which the encoder belongs to
        self.generator = generator.to(device).eval().requires_grad_(False)
        self.perceptual = perceptual.to(device)
        self.encoder = make_encoder(config, generator.mean_w.cpu()).to(device)
        self.optimizer = torch.optim.Adam(self.encoder.parameters(), lr=self.train.lr)
        self.step_number = 0
        self.schedule = Schedule(self.train.max_images)
        self.image_order = Order(store.slices_of(split="train"), config.seed)
        self.pair_order = Order(store.labelled(config.labelled), config.seed + 1)

    @property
    def images(self) -> int:
        """Real images seen so far; half of each batch is labelled."""
        return self.step_number * self.train.batch

    def step(self) -> dict[str, float]:
        """One iteration on a batch of half labelled, half any images; returns the named losses as numbers."""
        self.encoder.train()
        half = self.train.batch // 2
        start = self.step_number * half
        index = share(self.pair_order.batch(start, half))
        labelled = self.store.image_batch(index)
        others = self.store.image_batch(share(self.image_order.batch(start, self.train.batch - half)))
        hot = one_hot(self.store.label_batch(index).to(self.device), self.config.generator.num_classes)
        with autocast(self.device, self.config.amp):
            found = self._losses(torch.cat([labelled, others]).to(self.device), hot)
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.cosine(self.train.lr, self.images)
        self.optimizer.zero_grad(set_to_none=True)
        torch.stack(list(found.values())).sum().backward()
        average_gradients(self.encoder)
        torch.nn.utils.clip_grad_norm_(self.encoder.parameters(), self.train.clip_norm)
        self.optimizer.step()
        self.step_number += 1
        return {name: float(value.detach()) for name, value in found.items()}

    def _losses(self, real: Tensor, hot: Tensor) -> dict[str, Tensor]:
        """real: (B, C, H, W), the first len(hot) of them labelled; hot: (b, K, H, W)."""
        w_true, synthetic = self._synthetic() if self.train.latent_weight else (None, None)
        # Each kind of image is a consecutive part of its own joint batch.
        parts = {"labelled": real[: len(hot)], "any": real[len(hot) :]}
        if synthetic is not None:
            parts["synthetic"] = synthetic.image
        inputs = torch.cat([self._changed(images, kind) for kind, images in parts.items()])
        answer = self.encoder(inputs).float()
        pair: Pair = self.generator.synthesis(answer[: len(real)])
        image = pair.image.float()
        # Eq. 5: LPIPS, or what stands for it, + lambda_1 * mean squared error.
        found = {
            "perceptual": self.train.perceptual_weight * self.perceptual(image, real).mean(),
            "mse": self.train.mse_weight * F.mse_loss(image, real),
        }
        found |= label_losses(pair.label_logits[: len(hot)].float(), hot, self.config)
        if w_true is not None:
            # Not in the paper: images whose w is known.
            found["latent"] = self.train.latent_weight * F.mse_loss(answer[len(real) :], w_true)
        return found

    def _changed(self, image: Tensor, kind: str) -> Tensor:
        """The images, this process's part of those of a kind, in the looks in which the encoder sees them.

        Only a share of them is changed. Its answer has to give the image as it was, so it learns to start inversion
        from other modalities too.
        """
        if not self.train.appearance_share:
            return image
        joint = len(image) * world_size()
        numbers = rng(self.config.seed, self.step_number, f"encoder-appearance/{kind}")
        chosen = share(torch.rand(joint, generator=numbers) < self.train.appearance_share)
        channels, height, width = image.shape[1:]
        looks = draw_looks((joint, channels, height, width), numbers).part(share)
        shifted = apply_looks(image.clamp(-1.0, 1.0), looks)
        return torch.where(chosen.to(image.device)[:, None, None, None], shifted, image)

    @torch.no_grad()
    def _synthetic(self) -> tuple[Tensor, Pair]:
        """Generated pairs with their w_plus: half a batch, as this process's share."""
        count = self.train.batch // 2
        z = torch.randn(
            count, self.config.generator.z_dim, generator=rng(self.config.seed, self.step_number, "e")
        )
        w_plus = self.generator.broadcast(self.generator.mapping(share(z).to(self.device)))
        return w_plus, self.generator.synthesis(w_plus)

    def state_dict(self) -> dict[str, Any]:
        """Everything that exact resume needs; random numbers follow from seed and step."""
        return {
            "encoder": self.encoder.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step_number,
            "seconds": self.schedule.seconds,
            "generator": self.of,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from ``state_dict``, or begin anew with its weights if they were for another generator.

        When stage 1 went on since, the weights are a good start, but the mean w is that of this generator.
        """
        if state["generator"] != self.of:
            own = {name: value for name, value in self.encoder.named_buffers() if name == "mean_w"}
            self.encoder.load_state_dict(state["encoder"] | own)
            return
        self.encoder.load_state_dict(state["encoder"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_number = int(state["step"])
        self.schedule.seconds = float(
            state.get("seconds", 0.0)
        )  # runs of earlier versions did not count them
