"""Regular expressions and lists of choices, made ready for llguidance: bounded, and matched as a whole."""

from __future__ import annotations

import json
import re

from ollama_nb.errors import BadRequest

MAX_BYTES = 64 << 10
MAX_DEPTH = 64
MAX_CHOICES = 5000
MAX_REPEAT = 2000
MAX_SIZE = 100_000
"""Parts of a pattern with its repeats written out."""
_ATOM = re.compile(r"\\[xuUpP]\{[^{}]*\}|\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)
_BRACES = re.compile(r"\{(\d+)(?:,(\d*))?\}")
_PLAIN = re.compile(r"[A-Za-z0-9]|[^\x00-\x7f]")


def read_regex(text: str) -> str:
    """A pattern that the whole answer must match, looked over before native code sees it.

    Raises BadRequest for one that is too long or too deep; what else is wrong is found when it is compiled.
    """
    if len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadRequest(f"invalid regex: it may have {MAX_BYTES >> 10} KiB of text at most")
    bare = _ATOM.sub("x", text)
    if any(int(count[:9]) > MAX_REPEAT for braces in _BRACES.findall(bare) for count in braces if count):
        raise BadRequest(f"invalid regex: a part may be repeated {MAX_REPEAT} times at most")
    depth = 0
    for mark in bare:
        depth += (mark == "(") - (mark == ")")
        if depth > MAX_DEPTH:
            raise BadRequest(f"invalid regex: groups may be nested {MAX_DEPTH} levels deep at most")
    if written_out(bare) > MAX_SIZE:
        raise BadRequest(f"invalid regex: repeats within repeats come to more than {MAX_SIZE} parts")
    return text


def written_out(pattern: str) -> int:
    """How many parts a pattern has when its repeats are written out. Escapes and classes are single letters in it."""
    outer: list[int] = []
    size = last = at = 0
    while at < len(pattern):
        mark, repeat = pattern[at], _BRACES.match(pattern, at)
        at = repeat.end() if repeat else at + 1
        if repeat:
            times = max(1, int((repeat[2] or repeat[1])[:9]))
            size, last = size + last * (times - 1), last * times
        elif mark == "(":
            outer.append(size)
            size = last = 0
        elif mark == ")" and outer:
            size, last = outer.pop() + size, size
        elif mark not in "*+?|":
            size, last = size + 1, 1
    return size


def read_choices(text: str) -> str:
    """A JSON list of texts as a pattern that matches each of them and nothing else. Raises BadRequest."""
    choices = json.loads(text)
    if not choices:
        raise BadRequest("invalid choices: give at least one")
    if len(choices) > MAX_CHOICES or len(text.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadRequest(f"invalid choices: {MAX_CHOICES} choices and {MAX_BYTES >> 10} KiB of text at most")
    if not all(choices):
        raise BadRequest("invalid choices: an empty text is no choice")
    return "|".join(map(escape, choices))


def escape(text: str) -> str:
    """A pattern for just this text."""
    return "".join(mark if _PLAIN.match(mark) else f"\\x{{{ord(mark):X}}}" for mark in text)
