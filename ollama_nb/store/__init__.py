"""The model store on disk, in the layout of a real Ollama, which can share it."""
