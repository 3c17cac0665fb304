"""Processes: one runner per loaded model, one render process, and the pool that loads and unloads them."""
