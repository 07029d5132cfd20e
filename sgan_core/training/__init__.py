"""The three training stages: generator, encoder, student."""
