"""Runs: the step, gradients, the loop, and what image and text runs put around them."""
