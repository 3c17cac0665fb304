"""Checkpoints of safetensors → GGUF, on the ``gguf`` package: one family of models a file.

Runs in a short-lived child process (``runner.workshop``): whatever a checkpoint holds, it reaches no further.
"""
