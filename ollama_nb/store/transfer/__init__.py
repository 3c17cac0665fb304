"""Pulling and pushing whole models: resumable, in parallel parts, one transfer at a time per blob."""
