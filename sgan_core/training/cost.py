"""What a training run would cost on this machine: parameters, memory, seconds a step."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import nn

from sgan_core.cohort import Case, Cohort
from sgan_core.config import TrainConfig
from sgan_core.networks.perceptual import make_perceptual
from sgan_core.training.data import SliceStore
from sgan_core.training.encoder import EncoderTrainer
from sgan_core.training.gan import GanTrainer
from sgan_core.training.student import StudentTrainer


def cost(config: TrainConfig, device: torch.device) -> dict[str, float]:
    """Parameters (millions), memory (MB) and seconds a step of every stage, measured here on random images."""
    size, channels = config.student_size, config.generator.image_channels
    count = 2 * config.gan.batch
    images = np.random.default_rng(0).uniform(-1, 1, (count, channels, size, size)).astype(np.float16)
    labels = np.random.default_rng(1).integers(
        0, config.generator.num_classes, (count, size, size), dtype=np.uint8
    )
    case = Case(id="random", patient="random", image="random", label="random", labelled_rank=0)
    cohort = Cohort("random", config.modality, config.intensity, config.labels, (case,))
    store = SliceStore(images, labels, np.zeros(count, int), cohort)
    config = replace(config, labelled=1)
    small = store.at(config.generator.size)
    gan = GanTrainer(config, small, device)
    perceptual = make_perceptual("efficientnet-lite0") if config.perceptual == "discriminator" else None
    perceptual = perceptual or make_perceptual(config.perceptual)
    encoder = EncoderTrainer(config, small, device, gan.ema, perceptual)
    student = StudentTrainer(
        replace(config.student_train, growth={}),  # what a step costs at its full size
        store,
        device,
        labelled=1,
        num_classes=config.generator.num_classes,
        seed=config.seed,
        amp=config.amp,
    )
    return {
        "generator_m_parameters": _millions(gan.generator),
        "image_discriminator_m_parameters": _millions(gan.image_d),
        "pair_discriminator_m_parameters": _millions(gan.pair_d),
        "encoder_m_parameters": _millions(encoder.encoder),
        "student_m_parameters": _millions(student.net),
        "gan_seconds_per_step": _median_seconds(gan.step, device),
        "encoder_seconds_per_step": _median_seconds(encoder.step, device),
        "student_seconds_per_step": _median_seconds(student.step, device),
        "memory_mb": _memory_mb(device),
    }


def _millions(net: nn.Module) -> float:
    return sum(parameter.numel() for parameter in net.parameters()) / 1e6


def _median_seconds(step: Callable[[], Any], device: torch.device, repeats: int = 3) -> float:
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])  # the first one, with R1 and path length, also warms up


def _memory_mb(device: torch.device) -> float:
    """Peak memory: of the GPU, else of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    try:
        import resource
    except ImportError:  # Windows
        return float("nan")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if os.uname().sysname == "Darwin" else 2**10)
