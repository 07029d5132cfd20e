"""From files to arrays on a grid, then back."""
