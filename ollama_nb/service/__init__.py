"""What Ollama does, as async use cases that know no transport."""
