"""Formats of HTTP bodies: JSON → requests, events → JSON. Without Tornado."""
