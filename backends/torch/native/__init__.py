"""Native kernels for the work inside a chunk, on CPU: one sequence's head after the other, with its values in cache."""
