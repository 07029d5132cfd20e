"""How fast it is: inversion beside the authors' procedure, slices beside the training step."""
