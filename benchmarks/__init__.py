"""Measurements, each with a command of its own; README.md here says what each number means."""
