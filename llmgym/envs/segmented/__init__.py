"""SegmentedPrefill: how long prompts are prefilled, whole, in chunks or in segments, and whose next step runs."""
