"""One module a data set: where it comes from, its licence and how it becomes a cohort. Holds no data.

Importing this package is cheap; the modules are imported when a data set is asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sgan_datasets.source import About, DataSet

# name on the command line -> module whose DATA_SETS holds it
_MODULE_OF = {
    "jsrt": "jsrt",
    "cxr14": "cxr14",
    "montgomery": "montgomery",
    "shenzhen": "shenzhen",
    "nih": "nih",
    "wingspan": "wingspan",
    "wingspan-thorax": "wingspan",
    "covid-chestxray": "covid_chestxray",
    "isic2016": "isic",
    "isic2017": "isic",
    "isic2018": "isic",
    "ham10000": "ham10000",
    "ph2": "ph2",
    "dermis": "dermis",
    "dermquest": "dermis",
    "lits": "lits",
    "chaos-ct": "chaos",
    "chaos-mr": "chaos",
    "chaos-t2": "chaos",
    "chaos-t2-liver": "chaos",
    "msd-liver": "msd_liver",
    "lits-slices": "lits_slices",
    "btcv": "btcv",
    "btcv-abdomen": "btcv",
    "btcv-liver": "btcv",
    "celebamask": "celebamask",
    "metfaces": "metfaces",
    "fasseg": "fasseg",
}
NAMES = tuple(_MODULE_OF)  # of the public data sets


def data_set(name: str) -> DataSet:
    """The data set of a name in ``NAMES``."""
    module = import_module(f"sgan_datasets.{_MODULE_OF[name]}")
    found: DataSet = next(one for one in module.DATA_SETS if one.about.name == name)
    return found


def about(name: str) -> About:
    """What a data set is; also of "phantom" and "custom"."""
    if name in _MODULE_OF:
        return data_set(name).about
    described: About = import_module(f"sgan_datasets.{name}").ABOUT
    return described
