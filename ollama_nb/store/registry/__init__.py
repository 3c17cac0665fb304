"""Talking to registries: who is asked, over which connections, with which credentials."""
