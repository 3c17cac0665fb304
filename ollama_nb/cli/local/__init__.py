"""Commands that work on this machine's own store, without a server: a door to ``service``, as ``serve`` is."""
