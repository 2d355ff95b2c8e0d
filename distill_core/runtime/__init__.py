"""Devices and processes, command line, console, paths."""
