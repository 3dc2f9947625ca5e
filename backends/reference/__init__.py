"""Token-by-token reference, float64: independent of schedule, derivation and the torch backend."""
