"""Foraging in a long text: which part to open next, at which grain, what to keep, and when to stop."""
