"""The native API: Ollama's own dialect, ``/api/*``, with our additions."""
