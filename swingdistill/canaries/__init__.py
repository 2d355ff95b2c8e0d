"""Secrets planted in the training text, and how exposed a model leaves them."""
