"""Pictures of the level graph."""
