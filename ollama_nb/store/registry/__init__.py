"""Client of model registries: URLs, connections, credentials, and the API of one repository."""
