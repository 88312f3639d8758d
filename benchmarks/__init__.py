"""Measurements, each with a command of its own. README.md in this folder explains each number."""
