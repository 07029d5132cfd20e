"""One module a data set: where it comes from, its licence and how it becomes a cohort. Holds no data."""

from sgan_datasets import custom, phantom
from sgan_datasets.source import Source

SOURCES: tuple[Source, ...] = (custom.ABOUT, phantom.ABOUT)

__all__ = ["SOURCES", "Source"]
