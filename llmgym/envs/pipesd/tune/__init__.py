"""PipeSDTune: which confidence thresholds ask for a verdict."""
