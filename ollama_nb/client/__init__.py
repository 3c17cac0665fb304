"""Find a server, or start a private one, and talk to it."""
