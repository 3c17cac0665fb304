"""`ollama show`: one part of a model, or the screen with all that matters."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ollama_nb.api.units import human_number
from ollama_nb.cli.tables import aligned, display_width
from ollama_nb.client.connect import connect
from ollama_nb.errors import BadRequest

_WRAP, _WIDE_WRAP = 30, 100
_ARRAY_WIDTH = 10
_TEXT_LINES = 2

Info = Mapping[str, Any]


def show_model(model: str, parts: Sequence[str], verbose: bool) -> None:
    """Print the one part that was asked for (license, modelfile, parameters, system, template), or the screen."""
    if len(parts) > 1:
        raise BadRequest(
            "only one of '--license', '--modelfile', '--parameters', '--system', or '--template' can be specified"
        )
    fields = {"verbose": True} if verbose and not parts else {}
    info = connect().show(model, **fields)
    sys.stdout.write(part(info, parts[0]) if parts else screen(info, verbose=verbose))


def part(info: Info, name: str) -> str:
    """One part as text; system and template without a line break of ours."""
    text = str(info.get(name) or "")
    if name == "parameters":
        text = "\n".join(parameter_lines(info))
    return text if name in {"system", "template"} else text + "\n"


def parameter_lines(info: Info) -> list[str]:
    """Sorted by name, as servers send them in any order; the values of one name keep theirs."""
    return sorted(str(info.get("parameters") or "").splitlines(), key=lambda line: line.split(None, 1)[:1])


def screen(info: Info, *, verbose: bool = False) -> str:
    """The info screen: a title, its rows and an empty line for each section that there is."""
    metadata: Info = info.get("model_info") or {}
    sections = [
        _section("Model", _model_rows(info, metadata)),
        _section("Capabilities", [[name] for name in info.get("capabilities") or ()]),
        _section("Projector", _projector_rows(info.get("projector_info") or {})),
        _section("Parameters", [line.split() for line in parameter_lines(info)]),
    ]
    if verbose:
        sections.append(_section("Metadata", [[key, _value(metadata[key])] for key in sorted(metadata)]))
        sections.append(_section("Tensors", [_tensor(tensor) for tensor in info.get("tensors") or ()]))
    texts = (("System", info.get("system")), ("License", info.get("license")))
    sections += [_section(title, [[line] for line in _first_lines(text)], _WIDE_WRAP) for title, text in texts]
    return "".join(sections)


def _model_rows(info: Info, metadata: Info) -> Iterable[tuple[str, str]]:
    details: Info = info.get("details") or {}
    architecture = str(metadata.get("general.architecture", "") if metadata else details.get("family", ""))
    if info.get("remote_host"):
        yield "Remote model", str(info.get("remote_model", ""))
        yield "Remote URL", str(info["remote_host"])
    yield "architecture", architecture
    if size := details.get("parameter_size"):
        yield "parameters", str(size)
    elif count := metadata.get("general.parameter_count"):
        yield "parameters", human_number(int(count))
    for label, key in (("context length", "context_length"), ("embedding length", "embedding_length")):
        if (number := metadata.get(f"{architecture}.{key}")) is not None:
            yield label, f"{number:.0f}"
    yield "quantization", str(details.get("quantization_level", ""))
    if requires := info.get("requires"):
        yield "requires", str(requires)


def _projector_rows(projector: Info) -> Iterable[tuple[str, str]]:
    if not projector:
        return
    architecture = str(projector.get("general.architecture", ""))

    def first(name: str) -> Any:
        keys = (f"{architecture}.{kind}.{name}" for kind in ("vision", "audio"))
        return next((projector[key] for key in keys if key in projector), None)

    yield "architecture", architecture
    if count := projector.get("general.parameter_count"):
        yield "parameters", human_number(int(count))
    for label, key in (("embedding length", "embedding_length"), ("dimensions", "projection_dim")):
        if (number := first(key)) is not None:
            yield label, f"{number:.0f}"


def _tensor(tensor: Info) -> list[str]:
    return [str(tensor["name"]), str(tensor["type"]), f"[{' '.join(map(str, tensor['shape']))}]"]


def _value(value: Any) -> str:
    """A metadata value as Go prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if value != int(value) or abs(value) >= 1e6 else str(int(value))
    if isinstance(value, list):
        return _array(value)
    return "<nil>" if value is None else str(value)


def _array(items: Sequence[Any]) -> str:
    """The first item and as many more as fit, as Go prints a list, then how many there are beside them."""
    shown = [_value(item) for item in items]
    width = count = 1
    for count, text in enumerate(shown, 1):
        width += display_width(text) + (2 if count > 1 else 0)
        if width > _ARRAY_WIDTH and count > 1:
            count -= 1
            break
    more = f" ...+{len(items) - count} more" if count < len(items) else ""
    return f"[{' '.join(shown[:count])}{more}]"


def _first_lines(text: Any) -> list[str]:
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return [*lines[:_TEXT_LINES], *(["..."] if len(lines) > _TEXT_LINES else [])]


def _section(title: str, rows: Iterable[Sequence[str]], wrap: int = _WRAP) -> str:
    """Rows in columns below a title; cells that are too long go on in the next line."""
    cells = [line for row in rows for line in _wrapped(row, wrap)]
    if not cells:
        return ""
    count = max(map(len, cells))
    full = [[*row, *[""] * (count - len(row))] for row in cells]
    widths = [max(map(display_width, column)) for column in zip(*full, strict=True)]
    return f"  {title}\n" + "".join(f"    {aligned(row, widths)}\n" for row in full) + "\n"


def _wrapped(row: Sequence[str], wrap: int) -> Iterable[list[str]]:
    columns = [textwrap.wrap(cell, wrap, break_long_words=False, break_on_hyphens=False) or [""] for cell in row]
    for index in range(max(map(len, columns))):
        yield [column[index] if index < len(column) else "" for column in columns]
