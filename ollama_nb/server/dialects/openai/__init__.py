"""OpenAI's API as OpenAI, Ollama, vLLM and llama-server speak it: ``/v1/*``."""
