"""Tables, baselines."""
