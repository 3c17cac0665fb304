"""``ollama list``, ``ps``, ``show``, ``cp``, ``rm``, ``stop``, ``signin``, ``signout`` and ``--version``."""

from __future__ import annotations

import json as jsonlib
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from ollama_nb import __version__
from ollama_nb.client.connect import connect
from ollama_nb.errors import OllamaError
from ollama_nb.verbs import actions
from ollama_nb.verbs.present import Entry, batches_table, list_table, running_table, show_part, show_screen
from ollama_nb.verbs.table import SHOW_PARTS


def list_models(prefix: Sequence[str] = (), *, json: bool = False, quiet: bool = False) -> None:
    """Print the stored models."""
    actions.check_output_flags(json=json, quiet=quiet)
    _print_list(actions.list_models(connect(), *prefix[:1]), "models", list_table, json=json, quiet=quiet)


def list_running(prefix: Sequence[str] = (), *, json: bool = False, quiet: bool = False, batches: bool = False) -> None:
    """Print the loaded models, or the unfinished batches."""
    actions.check_output_flags(json=json, quiet=quiet)
    if batches:
        _print_list(actions.list_batches(connect(), *prefix[:1]), "batches", batches_table, json=json, quiet=quiet)
    else:
        _print_list(actions.list_running(connect(), *prefix[:1]), "models", running_table, json=json, quiet=quiet)


def show_model(model: str, *, verbose: bool = False, **parts: bool) -> None:
    """Print a model's details, or the one part that a flag selects."""
    selected = [part for part in SHOW_PARTS if parts.get(part)]
    actions.check_show_parts(selected)
    info = actions.show_model(connect(), model, verbose=verbose and not selected)
    sys.stdout.write(show_part(info, selected[0]) if selected else show_screen(info, verbose=verbose))


def copy_model(source: str, destination: str) -> None:
    """Give a model a second name."""
    connect().copy(source, destination)
    print(f"copied '{source}' to '{destination}'")


def remove_models(models: Iterable[str]) -> None:
    """Unload and delete models."""
    actions.remove_models(connect(), models, report=print, warn=lambda text: print(text, file=sys.stderr))


def stop_model(model: str) -> None:
    """Unload a model."""
    actions.stop_model(connect(), model)


def sign_in() -> None:
    """Fail: there are no cloud accounts."""
    raise OllamaError(
        "cloud accounts are not supported: models run on this machine only, there is nothing to sign in to"
    )


def sign_out() -> None:
    """Fail: there are no cloud accounts."""
    raise OllamaError("cloud accounts are not supported: there is no account to sign out from")


def show_version() -> None:
    """Print the versions of the server, if one runs, and of this package."""
    try:
        print(f"ollama version is {connect(start=False).version()}")
    except OllamaError:
        print("Warning: could not connect to a running Ollama instance")
    print(f"ollama-nb version is {__version__}")


def _print_list(
    document: Mapping[str, Any], kind: str, as_table: Callable[[Iterable[Entry]], str], *, json: bool, quiet: bool
) -> None:
    """Print a document with a list of ``kind``, models or batches."""
    if json:
        print(jsonlib.dumps(document, indent=2, ensure_ascii=False))
    elif quiet:
        name = "name" if kind == "models" else "id"
        sys.stdout.write("".join(f"{entry[name]}\n" for entry in document[kind]))
    else:
        sys.stdout.write(as_table(document[kind]))


COMMANDS: dict[str, Callable[..., None]] = {
    "list": list_models,
    "ps": list_running,
    "show": show_model,
    "cp": copy_model,
    "rm": remove_models,
    "stop": stop_model,
    "signin": sign_in,
    "signout": sign_out,
}
