"""The functions of Ollama as asynchronous use cases, independent of a transport."""
