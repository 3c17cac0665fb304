"""API dialects, one package each: ``requests`` reads JSON, ``replies`` writes it, ``routes`` has functions and paths.

A dialect converts between JSON and the values of :mod:`ollama_nb.api`; no dialect converts the JSON of another one.
"""
