"""Whole models between a registry and the store: planned by pure functions, resumable, one transfer per blob."""
