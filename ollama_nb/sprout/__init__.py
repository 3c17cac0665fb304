"""Sprout, the bundled tiny model for tests, continuous integration and offline first steps (see MODEL_CARD.md)."""

from pathlib import Path

GGUF = Path(__file__).with_name("sprout-q8_0.gguf")
MODELFILE = Path(__file__).with_name("Modelfile")
