"""Segmenters that every result of the generator stands beside."""
