"""The two training stages of SemanticGAN."""
