"""SemanticGAN: segmentation with a generative model of images and their labels."""

__version__ = "0.1.0"
