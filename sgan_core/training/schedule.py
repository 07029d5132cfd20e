"""How far a stage has come, by its images or by its time, and the learning rate that follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

_LAST = 0.01  # of the rate, at the end


@dataclass
class Schedule:
    """The progress of a stage: the larger share of what it has of images and of time.

    The loop keeps the time. It counts over all calls: after 30 of 60 minutes and a resume with 30 more, the
    share goes on from a half; after a finished hour and a resume with another one, too.
    """

    max_images: int
    seconds: float = 0.0  # trained so far, in all calls; kept in checkpoints
    time_share: float = 0.0  # of the time in all; 0 without a limit

    def progress(self, images: int) -> float:
        """0 at the start, 1 at the end."""
        return min(1.0, max(images / self.max_images, self.time_share))

    def cosine(self, rate: float, images: int) -> float:
        """``rate`` after a cosine decay to a hundredth over the stage."""
        fallen = 0.5 * (1.0 + math.cos(math.pi * self.progress(images)))
        return rate * (_LAST + (1.0 - _LAST) * fallen)
