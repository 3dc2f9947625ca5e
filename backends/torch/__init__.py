"""Generates PyTorch source from plans."""
