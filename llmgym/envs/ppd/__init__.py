"""Conversations on prefill and decode nodes: `routing` decides where a later turn is prefilled, `weights` what the rule weighs."""
