"""Writes a plan as PyTorch source that a person would like to read."""
