"""What a plan turns into: torch modules, the reference, pictures."""
