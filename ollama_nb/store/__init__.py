"""Models at rest: a content store that a real Ollama can share."""
