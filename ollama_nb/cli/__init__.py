"""The ``ollama`` program. ``main`` runs it, ``parse`` reads the command line; the other modules are the verbs."""
