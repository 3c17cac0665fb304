"""Lists, details and figures as text, byte for byte as Ollama prints them.

The rows (:func:`list_rows`, :func:`running_rows`, :func:`batch_rows`, :func:`show_sections`, :func:`stat_rows`) are for
callers that draw their own tables; the texts are for terminals.
"""

from __future__ import annotations

import re
import textwrap
import time
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ollama_nb.api.events import Stats
from ollama_nb.api.units import human_bytes, human_number, human_time

Entry = Mapping[str, Any]
"""A model as ``/api/tags``, ``/api/ps`` or ``/api/show`` describes it."""

# Text tables

GAP = "    "  # after every cell


def display_width(text: str) -> int:
    """The columns that a terminal gives to the text."""
    return len(text) if text.isascii() else sum(map(char_width, text))


def char_width(char: str) -> int:
    """The columns of one character: 2 for East Asian wide ones, 0 for combining ones."""
    if char.isascii():
        return 1
    if unicodedata.category(char) in {"Mn", "Me", "Cf"}:
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Columns as wide as their widest cell, without lines. The header ends with one space, every row with four."""
    body = [*rows]
    widths = [max(map(display_width, column)) for column in zip(header, *body, strict=True)]
    head = GAP.join(_padded(cell, width) for cell, width in zip(header, widths, strict=True)) + " "
    return "".join(line + "\n" for line in [head, *(aligned(row, widths) for row in body)])


def aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    """One row, each cell padded to its column's width and followed by the gap."""
    return "".join(_padded(cell, width) + GAP for cell, width in zip(cells, widths, strict=True))


def _padded(text: str, width: int) -> str:
    return text + " " * (width - display_width(text))


# list and ps

LIST_HEADER = ("NAME", "ID", "SIZE", "MODIFIED")
RUNNING_HEADER = ("NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL")
BATCHES_HEADER = ("ID", "MODEL", "ENDPOINT", "STATUS", "DONE", "FAILED", "CREATED")

_ZERO_TIME = "0001-01-01"  # Go's zero value
_LONG_FRACTION = re.compile(r"(\.\d{6})\d+")
_ID_LENGTH = 12  # hexadecimal digits of the digest


def list_rows(models: Iterable[Entry], now: float | None = None) -> list[tuple[str, ...]]:
    """The cells of ``list``. ``now`` is a UNIX time in seconds, by default the present."""
    now = time.time() if now is None else now
    return [
        (
            str(model.get("name", "")),
            str(model.get("digest", ""))[:_ID_LENGTH],
            "-" if model.get("remote_model") else human_bytes(model.get("size", 0)),
            relative_time(model.get("modified_at"), now),
        )
        for model in models
    ]


def running_rows(models: Iterable[Entry], now: float | None = None) -> list[tuple[str, ...]]:
    """The cells of ``ps``. ``now`` is a UNIX time in seconds, by default the present."""
    now = time.time() if now is None else now
    return [
        (
            str(model.get("name", "")),
            str(model.get("digest", ""))[:_ID_LENGTH],
            human_bytes(model.get("size", 0)),
            processor(model.get("size", 0), model.get("size_vram", 0)),
            str(model.get("context_length", "")),
            _until(model.get("expires_at"), now),
        )
        for model in models
    ]


def batch_rows(batches: Iterable[Entry], now: float | None = None) -> list[tuple[str, ...]]:
    """The cells of ``ps --batches``. ``now`` is a UNIX time in seconds, by default the present."""
    now = time.time() if now is None else now
    return [
        (
            str(batch["id"]),
            str(batch["model"]),
            str(batch["endpoint"]),
            str(batch["status"]),
            f"{batch['completed'] + batch['failed']}/{batch['total']}",
            str(batch["failed"]),
            relative_time(batch.get("created_at"), now),
        )
        for batch in batches
    ]


def list_table(models: Iterable[Entry], now: float | None = None) -> str:
    """``list`` as a text table."""
    return table(LIST_HEADER, list_rows(models, now))


def running_table(models: Iterable[Entry], now: float | None = None) -> str:
    """``ps`` as a text table."""
    return table(RUNNING_HEADER, running_rows(models, now))


def batches_table(batches: Iterable[Entry], now: float | None = None) -> str:
    """``ps --batches`` as a text table."""
    return table(BATCHES_HEADER, batch_rows(batches, now))


def processor(size: int, vram: int) -> str:
    """Where a model's memory is: ``100% CPU``, ``100% GPU`` or ``48%/52% CPU/GPU``."""
    if vram == 0:
        return "100% CPU"
    if size == 0 or vram > size:
        return "Unknown"
    if vram == size:
        return "100% GPU"
    cpu = int((size - vram) / size * 100 + 0.5)
    return f"{cpu}%/{100 - cpu}% CPU/GPU"


def relative_time(stamp: str | None, now: float) -> str:
    """An RFC 3339 time relative to ``now``; ``Never`` when it is missing or Go's zero time."""
    return "Never" if not stamp or stamp.startswith(_ZERO_TIME) else human_time(_seconds(stamp) - now)


def _until(stamp: str | None, now: float) -> str:
    if stamp and not stamp.startswith(_ZERO_TIME) and _seconds(stamp) < now:
        return "Stopping..."
    return relative_time(stamp, now)


def _seconds(stamp: str) -> float:
    # Servers write up to nine digits of a second; Python accepts six.
    return datetime.fromisoformat(_LONG_FRACTION.sub(r"\1", stamp)).timestamp()


# show

_WRAP, _TEXT_WRAP = 30, 100  # columns of a cell, and of a line of the system message and the license
_ARRAY_WIDTH = 10  # columns of the items of an array
_TEXT_LINES = 2  # lines of the system message and the license


@dataclass(frozen=True, slots=True)
class ShowSection:
    """A titled block of ``show``. Cells longer than ``wrap`` columns continue on the next line."""

    title: str
    rows: list[list[str]]
    wrap: int = _WRAP


def show_sections(info: Entry, *, verbose: bool = False) -> list[ShowSection]:
    """The sections of ``show`` that are not empty; ``verbose`` adds the metadata and the tensors."""
    metadata: Entry = info.get("model_info") or {}
    sections = [
        ShowSection("Model", [[*row] for row in _model_rows(info, metadata)]),
        ShowSection("Capabilities", [[name] for name in info.get("capabilities") or ()]),
        ShowSection("Projector", [[*row] for row in _projector_rows(info.get("projector_info") or {})]),
        ShowSection("Parameters", [line.split() for line in parameter_lines(info)]),
    ]
    if verbose:
        sections.append(ShowSection("Metadata", [[key, metadata_value(metadata[key])] for key in sorted(metadata)]))
        sections.append(ShowSection("Tensors", [_tensor_row(tensor) for tensor in info.get("tensors") or ()]))
    for title, text in (("System", info.get("system")), ("License", info.get("license"))):
        sections.append(ShowSection(title, [[line] for line in _first_lines(text)], _TEXT_WRAP))
    return [section for section in sections if section.rows]


def show_screen(info: Entry, *, verbose: bool = False) -> str:
    """``show`` as text: for each section its title, its rows and an empty line."""
    return "".join(map(_section_text, show_sections(info, verbose=verbose)))


def show_part(info: Entry, name: str) -> str:
    """One part of a model as ``show --PART`` prints it; only system and template lack a final line break."""
    text = str(info.get(name) or "")
    if name == "parameters":
        text = "\n".join(parameter_lines(info))
    return text if name in {"system", "template"} else text + "\n"


def parameter_lines(info: Entry) -> list[str]:
    """The parameters sorted by name, because servers send them in any order; values of one name keep their order."""
    return sorted(str(info.get("parameters") or "").splitlines(), key=lambda line: line.split(None, 1)[:1])


def metadata_value(value: Any) -> str:
    """A metadata value as Go prints it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return f"{value:g}" if value != int(value) or abs(value) >= 1e6 else str(int(value))
    if isinstance(value, list):
        return _array(value)
    return "<nil>" if value is None else str(value)


def _model_rows(info: Entry, metadata: Entry) -> Iterator[tuple[str, str]]:
    details: Entry = info.get("details") or {}
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


def _projector_rows(projector: Entry) -> Iterator[tuple[str, str]]:
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


def _tensor_row(tensor: Entry) -> list[str]:
    return [str(tensor["name"]), str(tensor["type"]), f"[{' '.join(map(str, tensor['shape']))}]"]


def _array(items: Sequence[Any]) -> str:
    """The first item, more items while they fit, and the number of the remaining ones, in Go's notation."""
    texts = [metadata_value(item) for item in items]
    width = count = 1
    for count, text in enumerate(texts, 1):
        width += display_width(text) + (2 if count > 1 else 0)
        if width > _ARRAY_WIDTH and count > 1:
            count -= 1
            break
    more = f" ...+{len(items) - count} more" if count < len(items) else ""
    return f"[{' '.join(texts[:count])}{more}]"


def _first_lines(text: Any) -> list[str]:
    lines = [line.strip() for line in str(text or "").splitlines() if line.strip()]
    return [*lines[:_TEXT_LINES], *(["..."] if len(lines) > _TEXT_LINES else [])]


def _section_text(section: ShowSection) -> str:
    lines = [line for row in section.rows for line in _wrapped(row, section.wrap)]
    count = max(map(len, lines))
    full = [[*line, *[""] * (count - len(line))] for line in lines]
    widths = [max(map(display_width, column)) for column in zip(*full, strict=True)]
    return f"  {section.title}\n" + "".join(f"    {aligned(line, widths)}\n" for line in full) + "\n"


def _wrapped(row: Sequence[str], wrap: int) -> Iterator[list[str]]:
    columns = [textwrap.wrap(cell, wrap, break_long_words=False, break_on_hyphens=False) or [""] for cell in row]
    for index in range(max(map(len, columns))):
        yield [column[index] if index < len(column) else "" for column in columns]


# --verbose

_SECOND, _MILLI, _MICRO = 1_000_000_000, 1_000_000, 1_000  # nanoseconds


def stat_rows(stats: Stats) -> list[tuple[str, str]]:
    """The figures of a reply, label and value; figures that are zero are left out."""
    prompt_ns, output_ns = _nanoseconds(stats.prompt_seconds), _nanoseconds(stats.output_seconds)
    rows = [
        ("total duration:", _duration_cell(_nanoseconds(stats.total_seconds))),
        ("load duration:", _duration_cell(_nanoseconds(stats.load_seconds))),
        ("prompt eval count:", _tokens_cell(stats.prompt_tokens)),
        ("prompt eval duration:", _duration_cell(prompt_ns)),
        ("prompt eval rate:", _rate_cell(stats.prompt_tokens, prompt_ns)),
        ("eval count:", _tokens_cell(stats.output_tokens)),
        ("eval duration:", _duration_cell(output_ns)),
        ("eval rate:", _rate_cell(stats.output_tokens, output_ns)),
    ]
    if drafted := stats.drafted_tokens:
        accepted = stats.accepted_tokens
        rows.append(("draft accept rate:", f"{accepted / drafted:.0%} ({accepted} of {drafted} tokens)"))
    rows.append(("cached tokens:", _tokens_cell(stats.cached_tokens)))
    rows.append(("thinking tokens:", _tokens_cell(stats.reasoning_tokens)))
    return [(label, value) for label, value in rows if value]


def stat_text(stats: Stats) -> str:
    """The figures of a reply, one line each."""
    return "".join(f"{label:<21} {value}\n" for label, value in stat_rows(stats))


def go_duration(nanoseconds: int) -> str:
    """A duration in Go's notation: ``1h1m1.005s``, ``1.5ms``, ``1.5µs``, ``0s``."""
    sign, rest = ("-", -nanoseconds) if nanoseconds < 0 else ("", nanoseconds)
    if rest == 0:
        return "0s"
    for size, unit in ((_MICRO, "ns"), (_MILLI, "µs"), (_SECOND, "ms")):
        if rest < size:
            return f"{sign}{_decimal(rest, size // 1000)}{unit}"
    minutes, rest = divmod(rest, 60 * _SECOND)
    hours, minutes = divmod(minutes, 60)
    return (
        sign
        + (f"{hours}h" if hours else "")
        + (f"{minutes}m" if hours or minutes else "")
        + f"{_decimal(rest, _SECOND)}s"
    )


def _decimal(value: int, unit: int) -> str:
    whole, part = divmod(value, unit)
    digits = f"{part:0{len(str(unit)) - 1}d}".rstrip("0") if part else ""
    return f"{whole}.{digits}" if digits else str(whole)


def _nanoseconds(seconds: float) -> int:
    return round(seconds * _SECOND)


def _duration_cell(nanoseconds: int) -> str:
    return go_duration(nanoseconds) if nanoseconds else ""


def _tokens_cell(count: int) -> str:
    return f"{count} token(s)" if count else ""


def _rate_cell(count: int, nanoseconds: int) -> str:
    return f"{count / nanoseconds * _SECOND:.2f} tokens/s" if nanoseconds else ""
