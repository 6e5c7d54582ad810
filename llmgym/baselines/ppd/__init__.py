"""Rules of conversations on prefill and decode nodes."""
