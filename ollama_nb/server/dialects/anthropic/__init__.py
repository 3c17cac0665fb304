"""Anthropic's API as Anthropic and Ollama speak it: ``/v1/messages`` and what belongs to it."""
