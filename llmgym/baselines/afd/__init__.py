"""Rules and closed forms of attention-FFN disaggregation."""
