"""The terminal: the `ollama` program."""
