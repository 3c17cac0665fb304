"""Convert safetensors checkpoints to GGUF, with the ``gguf`` package: one file per family of models.

This runs in a short-lived child process, which contains the effects of malicious checkpoints.
"""
