"""The client: find or start a server, send requests, receive replies.

From the outside in: ``ollama`` and ``aio`` (the Python API), ``chat`` and ``conversation`` (conversations, shared with
the terminal and the notebook), ``chunks`` and ``answer`` (replies), ``client`` (the REST API), ``http``, ``connect``.
"""
