"""What the shared verbs do, without any output of their own."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ollama_nb.errors import BadRequest, NotFound, OllamaError
from ollama_nb.verbs.table import SHOW_PARTS

if TYPE_CHECKING:
    from ollama_nb.client.client import Client

Document = dict[str, Any]
"""A JSON object of the server."""


def list_models(client: Client, prefix: str = "") -> Document:
    """The stored models whose names start with ``prefix`` in any case, as ``/api/tags`` returns them."""
    return _matching(client.list(), lambda name: name.lower().startswith(prefix.lower()))


def list_running(client: Client, prefix: str = "") -> Document:
    """The loaded models whose names start with ``prefix``, as ``/api/ps`` returns them. As in Ollama, case matters."""
    return _matching(client.ps(), lambda name: name.startswith(prefix))


def list_batches(client: Client, prefix: str = "") -> Document:
    """The unfinished batches with a model whose name starts with ``prefix``, as ``/api/queue`` returns them."""
    batches = client.queue().get("batches") or []
    return {"batches": [batch for batch in batches if batch["model"].startswith(prefix)]}


def check_output_flags(*, json: bool, quiet: bool) -> None:
    """Raise BadRequest when a list is wanted in two forms."""
    if json and quiet:
        raise BadRequest("only one of '--quiet' or '--json' can be specified")


def check_show_parts(parts: Sequence[str]) -> None:
    """Raise BadRequest for more than one part of a model. The message is Ollama's."""
    if len(parts) > 1:
        *names, last = sorted(SHOW_PARTS)
        listed = ", ".join(f"'--{name}'" for name in names)
        raise BadRequest(f"only one of {listed}, or '--{last}' can be specified")


def show_model(client: Client, model: str, *, verbose: bool = False) -> Document:
    """A model's details; ``verbose`` includes its full metadata and tensors."""
    return client.show(model, **({"verbose": True} if verbose else {}))


def stop_model(client: Client, model: str) -> None:
    """Unload a model. A stored model that is not loaded counts as stopped. Raises NotFound for any other name."""
    try:
        client.show(model)
    except NotFound:
        raise NotFound(f'couldn\'t find model "{model}" to stop') from None
    unload(client, model)


def unload(client: Client, model: str) -> None:
    """Remove a model from memory."""
    client.generate(model, stream=False, keep_alive=0)


def remove_models(
    client: Client, models: Iterable[str], *, report: Callable[[str], None], warn: Callable[[str], None]
) -> None:
    """Unload and delete models, up to the first that cannot be deleted; ``report`` receives a line for each."""
    for model in models:
        try:
            unload(client, model)
        except NotFound:
            pass  # the delete raises the error with its own message
        except OllamaError:
            warn(f"Warning: unable to stop model '{model}'")
        client.delete(model)
        report(f"deleted '{model}'")


def _matching(document: Mapping[str, Any], matches: Callable[[str], bool]) -> Document:
    models: Collection[Mapping[str, Any]] = document.get("models") or ()
    return {**document, "models": [model for model in models if matches(model["name"])]}
