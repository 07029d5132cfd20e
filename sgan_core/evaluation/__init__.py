"""Scores, tables, baselines."""
