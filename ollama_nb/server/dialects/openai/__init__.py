"""OpenAI's API with the extensions of Ollama, vLLM and llama-server: ``/v1/*``."""
