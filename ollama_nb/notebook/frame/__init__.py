"""Models over the rows of pandas objects: ``df.ollama`` and ``series.ollama``. Loaded when first used."""
