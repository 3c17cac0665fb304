"""The limits of what one client may ask of the server: sizes, counts, nesting and times.

They are far above what people and programs send, and so low that no request stops the event loop for long or fills the
memory. Counts are checked while a body is read, in a worker thread for all but small bodies.
"""

from __future__ import annotations

MIB = 1 << 20

# Bodies of requests
MAX_BODY = 32 * MIB  # bytes
MAX_IMAGES = 256 * MIB  # bytes, on routes that take images; without the images MAX_BODY
MAX_DECOMPRESSED = 20 * MIB  # bytes of a body that was sent compressed
MAX_BODIES = 512 * MIB  # bytes of all bodies that are in memory at the same time
BODY_SECONDS = 60.0  # without any byte of a body, after which the connection is closed
MIN_BODY_RATE = 1024  # bytes per second, on average; a body that arrives more slowly is given up after BODY_SECONDS
MAX_DISCARDED = MIB  # bytes of a refused body that are read, so that the client reads the reply before it closes

# JSON
MAX_DEPTH = 64  # levels of nested arrays and objects
MAX_VALUES = 2_000_000  # values in one body
MAX_CONTAINERS = 100_000  # objects and arrays in one body
MAX_MEMBERS = 200_000  # members of all objects in one body; Python reads those of one object in one step
MAX_FIELDS = 1024  # fields of one object of the API
MAX_ENTRIES = {
    "messages": 16_384,
    "input": 16_384,  # texts to embed; items of a conversation
    "documents": 16_384,
    "tools": 2048,
    "images": 1024,
    "options": 1024,
}  # entries of the list or object in a field of that name
MAX_OTHER_ENTRIES = 16_384  # entries of the other lists and objects, such as the parts of a message
MAX_NUMBERS = 1 << 20  # numbers in one list: the tokens of a prompt or a context
MAX_SCHEMA_VALUES = 50_000  # values in a JSON Schema; its text may have 256 KiB
MAX_WARNINGS = 16  # warnings about ignored fields in one reply; only for these a similar name is searched

# Replies
MAX_PENDING = MIB  # bytes of a reply that wait to be sent; above it the producer waits
WRITE_SECONDS = 60.0  # in which the client accepts a piece of the reply; after them its connection is closed

# Work outside of the event loop
MAX_ON_LOOP = 32 << 10  # bytes of a body or a reply that the event loop itself reads or writes
MAX_EVENTS_ON_LOOP = 128  # events of a reply that the event loop itself joins
WORKERS = 2  # threads that read large bodies and write large replies: more would delay the event loop

# Connections of the standalone server
MAX_CONNECTIONS = 800  # further ones are refused with 503; most systems allow 1024 open files
IDLE_SECONDS = 120.0  # of a connection without a request, or with an incomplete header
