"""Stages, report and figures of the methods' experiments."""
