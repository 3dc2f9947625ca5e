"""Training a program: data, loop, sampling."""
