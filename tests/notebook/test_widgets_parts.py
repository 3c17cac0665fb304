"""The pure parts of the widgets: exchanges, incremental Markdown, model suggestions, exports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.errors import BadRequest, NotFound
from ollama_nb.notebook.render import markdown_html
from ollama_nb.notebook.widgets import models
from ollama_nb.notebook.widgets.conversation import (
    ChatSettings,
    Exchanges,
    GrowingMarkdown,
    to_code,
    to_notebook,
)


def talk(*pairs: tuple[str, str], settings: ChatSettings | None = None) -> Exchanges:
    chat = Exchanges(settings or ChatSettings())
    for question, answer in pairs:
        reply = chat.ask("m", question).reply
        if answer:
            reply.feed({"message": {"content": answer}, "done": True, "done_reason": "stop"})
    return chat


# -- conversations ----------------------------------------------------------------------------------------------------


def test_a_request_has_the_answered_exchanges_and_the_question() -> None:
    chat = talk(("a", "1"), ("failed", ""), ("b", "2"), settings=ChatSettings(system="be brief"))
    last = chat.ask("m", "c", ("aW1n",))
    assert chat.conversation(last).request(last.question()) == [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "1"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "c", "images": ["aW1n"]},
    ]
    assert chat.messages()[-1] == {"role": "assistant", "content": "2"}


def test_asking_again_drops_later_exchanges_and_keeps_images() -> None:
    chat = talk(("a", "1"), ("b", "2"), ("c", "3"))
    chat.exchanges[1].images = ("aW1n",)
    again = chat.again(1, "other", "B")
    assert [exchange.text for exchange in chat.exchanges] == ["a", "B"]
    assert (again.images, again.reply.model) == (("aW1n",), "other")
    with pytest.raises(NotFound):
        chat.again(1, "m")


def test_the_page_receives_safe_html() -> None:
    chat = talk(("<b>", "**b**\n\n<script>alert(1)</script>"))
    reply = chat.exchanges[0].reply
    reply.thinking = "<img src=x>"
    reply.feed({"done": True, "warnings": ["`<i>`"]})
    shown = chat.exchanges[0].to_page()
    assert "<script" not in shown["html"] and "<strong>b</strong>" in shown["html"]
    assert "<img" not in shown["thinking"] and shown["notes"] == ["<code>&lt;i&gt;</code>"]
    assert shown["raw"] == "**b**\n\n<script>alert(1)</script>"


def test_notes_name_settings() -> None:
    """The widget has settings where magics have options."""
    chat = Exchanges()
    for final in ({"done_reason": "length"}, {"truncated": {"messages_dropped": 2}}):
        chat.ask("m", "a").reply.feed({"message": {"content": "b"}, "done": True, **final})
    notes = [note for exchange in chat.exchanges for note in exchange.to_page()["notes"]]
    assert len(notes) == 2
    assert all("he context in the settings widens it." in note and "--" not in note for note in notes)


@pytest.mark.parametrize(
    ("given_", "fields"),
    [
        (ChatSettings(), {}),
        (ChatSettings(temperature=0, num_ctx=512), {"options": {"temperature": 0, "num_ctx": 512}}),
        (ChatSettings(think="off"), {"think": False}),
        (ChatSettings(think="high"), {"think": "high"}),
        (ChatSettings(format="json"), {"format": "json"}),
        (ChatSettings(format="schema", schema='{"type": "object"}'), {"format": {"type": "object"}}),
    ],
)
def test_settings_as_a_request(given_: ChatSettings, fields: dict[str, Any]) -> None:
    assert given_.request() == fields


@pytest.mark.parametrize("wrong", [ChatSettings(format="schema", schema="{"), ChatSettings(temperature=float("nan"))])
def test_invalid_settings(wrong: ChatSettings) -> None:
    with pytest.raises(BadRequest):
        wrong.request()


# -- incremental Markdown ---------------------------------------------------------------------------------------------

BLOCKS = st.sampled_from(
    [
        "One *two* three.",
        "# Title",
        "```py\na\n\nb\n```",
        "- a\n- b",
        "1. a\n2. b",
        "> said",
        "| a |\n|---|\n| 1 |",
        "天空。",
    ]
)


@settings(max_examples=100)
@given(st.lists(BLOCKS, min_size=1, max_size=8), st.integers(1, 40))
def test_incremental_rendering_equals_rendering_at_once(blocks: list[str], step: int) -> None:
    """Except for lists with gaps, which may be rendered as several lists until the end."""
    text = "\n\n".join(blocks)
    growing, html, tail = GrowingMarkdown(), "", ""
    for end in [*range(0, len(text), step), len(text)]:
        settled, tail = growing.feed(text[:end])
        html += settled
    assert html + tail == markdown_html(text)


def test_only_the_last_part_is_rendered_again() -> None:
    growing, text, drawn = GrowingMarkdown(), "", 0
    for number in range(200):
        text += f"Paragraph {number} is here.\n\n"
        drawn += sum(map(len, growing.feed(text)))
    assert drawn < 5 * len(markdown_html(text))


def test_an_open_fence_is_not_settled() -> None:
    growing = GrowingMarkdown()
    growing.feed("Look:\n\n```py\nx = 1\n\ny = 2\nz = 3\n")
    assert growing.settled == len("Look:\n\n")


# -- model suggestions ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "memory", "expected"),
    [(1000, 8 * models.GB, "fits"), (8 * models.GB, 8 * models.GB, "too big"), (5 * models.GB, 7 * models.GB, "tight")],
)
def test_whether_a_model_fits(size: int, memory: int, expected: str) -> None:
    assert models.fit(size, memory) == expected
    assert models.fit(size, 0) == ""


def test_the_memory_of_a_container_counts(tmp_path: Path) -> None:
    limit = tmp_path / "memory.max"
    assert models.machine_memory(limit) > 0
    limit.write_text("max\n")
    assert models.machine_memory(limit) == models.machine_memory(tmp_path / "none")
    limit.write_text("1000\n")
    assert models.machine_memory(limit) == 1000


def test_choices_are_installed_models_then_suggestions() -> None:
    here = [
        {
            "name": "qwen3:0.6b",
            "size": 5,
            "details": {"parameter_size": "751M"},
            "capabilities": ["completion", "vision"],
        },
        {"name": "smollm2:latest", "size": 9},
        {"name": "embeds", "size": 1, "capabilities": ["embedding"]},
    ]
    found = models.choices(here, 8 * models.GB)
    assert [(row["name"], row["here"]) for row in found[:3]] == [
        ("qwen3:0.6b", True),
        ("smollm2", True),
        ("sprout", False),
    ]
    assert (found[0]["about"], found[0]["vision"], found[0]["thinks"]) == ("751M", True, False)
    names = [row["name"] for row in found]
    assert len(names) == len(set(names)) and "embeds" not in names


# -- exports ----------------------------------------------------------------------------------------------------------


def test_a_conversation_as_a_notebook() -> None:
    kept = ChatSettings(system='Say "yes".\nAlways.', temperature=0.5)
    chat = talk(("天空？", "蓝色。"), ("failed", ""), ("a {{name}} b", "2"), settings=kept)
    book = nbformat.from_dict(to_notebook(chat))
    nbformat.validate(book)
    assert [cell.source for cell in book.cells] == [
        "%load_ext ollama_nb",
        '%%ollama chat m --reset --system "Say \\"yes\\". Always." --temperature 0.5\n天空？',
        "%%ollama chat m --temperature 0.5\na {{ name}} b",
    ]
    assert book.cells[1].outputs[0].data["text/plain"] == "蓝色。"


def test_a_conversation_as_code() -> None:
    chat = talk(("it's\n天空", "1"), settings=ChatSettings(system="s", num_ctx=512, format="json"))
    code = to_code(chat, "m")
    compile(code, "cell", "exec")
    assert "chat_session('m', system='s', format='json', num_ctx=512)" in code
    assert 'chat.ask("it\'s\\n天空")' in code


def test_importing_the_widgets_package_loads_no_ipywidgets() -> None:
    code = "import sys, ollama_nb.notebook.widgets; print({'ipywidgets', 'anywidget'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
