"""The networks of SemanticGAN in plain PyTorch."""
