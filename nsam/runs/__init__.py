"""Run folders on disk: checkpoints, metrics, pictures."""
