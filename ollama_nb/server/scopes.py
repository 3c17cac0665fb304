"""What a key must be good for, by route. A route that is not named here needs ``admin``."""

from __future__ import annotations

INFER, READ, WRITE, ADMIN = SCOPES = "infer", "read", "write", "admin"

_READ_POSTS = {"/api/show", "/api/me"}
_READ_GETS = {
    "/", "/api/version", "/api/status", "/api/tags", "/api/ps", "/api/queue", "/api/experimental/model-recommendations",
    "/livez", "/readyz", "/metrics",
}  # fmt: skip
_INFER = {
    "/api/generate", "/api/chat", "/api/embed", "/api/embeddings", "/api/rerank", "/api/tokenize", "/api/detokenize",
}  # fmt: skip
_WRITE = {"/api/create", "/api/copy", "/api/delete", "/api/pull", "/api/push"}


def scope_of(method: str, path: str) -> str:
    """The scope that a request needs."""
    path = path.rstrip("/") or "/"
    reads = method in ("GET", "HEAD")
    if path.startswith("/v1/"):  # dialects of other APIs: they only ever run models or list them
        return READ if reads else INFER
    if path.startswith(("/api/blobs/", "/api/requests/")):
        return READ if reads else WRITE
    if path in (_READ_GETS if reads else _READ_POSTS):
        return READ
    if path in _INFER:
        return INFER
    return WRITE if path in _WRITE else ADMIN
