"""PipeSDNav: keep drafting, upload, or have the draft verified."""
