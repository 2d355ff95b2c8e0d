"""Weights that other libraries trained, as networks of ours."""
