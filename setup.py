"""Maps the import package sgan_datasets to the folder datasets/; everything else is in pyproject.toml.

The folder is not importable as ``datasets``, which would shadow a well-known package. The files in recipes/ go into
the wheel as sgan_core/recipes/. Those in models/ do not: the terms of their data may forbid it.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sgan_core", "sgan_core.*"]), "sgan_core.recipes", "sgan_datasets"],
    package_dir={"sgan_core.recipes": "recipes", "sgan_datasets": "datasets"},
)
