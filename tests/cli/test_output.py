"""Word wrap and printing of replies."""

from __future__ import annotations

import io
import itertools
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.cli.output import ReplyPrinter
from ollama_nb.cli.terminal import WordWrapper
from ollama_nb.client.chunks import TextChunk, ThinkingChunk, ToolCallsChunk
from ollama_nb.verbs.present import display_width


def on_screen(written: str) -> list[str]:
    """What a terminal shows for text, line feeds, `ESC[nD` and `ESC[K`: one cell per column."""
    rows, column = [[""] * 0], 0
    for piece in re.findall(r"\x1b\[\d*[DK]|\n|.", written, re.DOTALL):
        row = rows[-1]
        if piece == "\n":
            rows.append([])
            column = 0
        elif piece.endswith("D") and piece.startswith("\x1b"):
            column -= int(piece[2:-1])
        elif piece.endswith("K") and piece.startswith("\x1b"):
            del row[column:]
        else:
            width = display_width(piece)
            row[column:] = [piece, *[""] * (width - 1)]
            column += width
    return ["".join(row) for row in rows]


def test_a_word_that_does_not_fit_moves_down() -> None:
    assert on_screen(WordWrapper(20).feed("one two three four five")) == ["one two three ", "four five"]


@pytest.mark.parametrize("columns", [0, 9])
def test_narrow_terminals_are_left_alone(columns: int) -> None:
    assert WordWrapper(columns).feed("one two three") == "one two three"


def test_chinese_wraps_anywhere() -> None:
    assert on_screen(WordWrapper(15).feed("天空为什么是蓝色的呢")) == ["天空为什么", "是蓝色的呢"]


def test_a_word_longer_than_the_line_is_broken_and_not_written_twice() -> None:
    assert "".join(on_screen(WordWrapper(15).feed("x" * 25))) == "x" * 25


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet="ab 你，\n", max_size=80), st.integers(10, 30), st.lists(st.integers(0, 80), max_size=4))
def test_wrapping_keeps_the_text_and_the_width_for_any_pieces(text: str, columns: int, cuts: list[int]) -> None:
    whole = WordWrapper(columns).feed(text)
    places = sorted({0, len(text), *(min(cut, len(text)) for cut in cuts)})
    wrapper = WordWrapper(columns)
    pieces = "".join(wrapper.feed(text[a:b]) for a, b in itertools.pairwise(places))
    assert pieces == whole
    rows = on_screen(whole)
    assert "".join(rows).replace(" ", "") == text.replace("\n", "").replace(" ", "")
    assert max(display_width(row) for row in rows) <= columns - 4


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def written(out: io.StringIO, **manner: bool) -> str:
    printer = ReplyPrinter(out=out, **manner)
    printer.feed(ThinkingChunk("hm"))
    printer.feed(ThinkingChunk(", 嗯"))
    printer.feed(TextChunk("Yes"))
    printer.feed(TextChunk("."))
    printer.end()
    return out.getvalue()


def test_thinking_in_plain_text() -> None:
    assert written(io.StringIO()) == "Thinking...\nhm, 嗯\n...done thinking.\n\nYes."


def test_thinking_on_a_terminal_is_grey() -> None:
    grey, bold, reset = "\x1b[38;5;245m", "\x1b[1m", "\x1b[0m"
    assert written(Terminal()) == (
        f"{grey}{bold}Thinking...\n{reset}{grey}hm, 嗯\n{reset}{grey}{bold}...done thinking.\n\n{reset}Yes."
    )


def test_thinking_hidden() -> None:
    assert written(io.StringIO(), hide_thinking=True) == "Yes."


def test_a_reply_of_thinking_only_is_closed() -> None:
    out = io.StringIO()
    printer = ReplyPrinter(out=out)
    printer.feed(ThinkingChunk("hm\n"))
    printer.end()
    assert out.getvalue() == "Thinking...\nhm\n...done thinking.\n\n"


def test_tool_calls_are_shown() -> None:
    out = io.StringIO()
    ReplyPrinter(out=out).feed(
        ToolCallsChunk(({"function": {"name": "weather", "arguments": {"city": "北京"}}}, {"function": {"name": "f"}}))
    )
    assert out.getvalue() == (
        '  Model called a non-existent function \'weather()\' with arguments: {"city": "北京"}\n'
        "  Model called a non-existent function 'f()' with arguments: {}"
    )


def test_control_characters_of_a_reply_do_not_reach_the_terminal() -> None:
    out = Terminal()
    ReplyPrinter(out=out).feed(TextChunk("\x1b]52;c;ZXZpbA==\x07ok\x9b2J"))
    assert out.getvalue() == "␛]52;c;ZXZpbA==␇ok\ufffd2J"
    plain = io.StringIO()
    ReplyPrinter(out=plain).feed(TextChunk("\x1b[1m"))
    assert plain.getvalue() == "\x1b[1m"  # in a file, every byte of the reply
