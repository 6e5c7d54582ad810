"""Drafts at the edge, verdicts in the cloud: `nav` decides token by token, `batch` when to upload, `tune` the thresholds."""
