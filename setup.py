"""Maps the import package sgan_datasets to the folder datasets/; everything else is in pyproject.toml.

The folder is not importable as ``datasets``, which would shadow a well-known package.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["sgan_core", "sgan_core.*"]), "sgan_datasets"],
    package_dir={"sgan_datasets": "datasets"},
)
