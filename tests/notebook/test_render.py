"""Model output is rendered as safe HTML, whatever it contains."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.payloads import PAYLOADS

from ollama_nb.notebook.render import markdown_html

TAGS = {
    *("p", "br", "hr", "em", "strong", "del", "code", "pre", "blockquote", "ul", "ol", "li", "a"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "table", "thead", "tbody", "tr", "th", "td"),
}
ATTRIBUTES = {"href", "target", "rel", "start", "class", "style"}


class Inspector(HTMLParser):
    """Fails on any tag, attribute or address that could run a script or fetch something."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in TAGS, tag
        for name, value in attrs:
            assert name in ATTRIBUTES, name
            if name == "href":
                assert re.match(r"https?://|mailto:", value or "", re.I), value
            if name == "style":
                assert re.fullmatch(r"text-align:\s?(left|right|center)", value or ""), value
            if name == "class":
                assert (value or "").startswith("language-"), value


def inspect(html: str) -> None:
    inspector = Inspector()
    inspector.feed(html)
    inspector.close()


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads(payload: str) -> None:
    """S22, S23: nothing that could run or be fetched is left of a payload."""
    text = payload.replace("CANARY", "http://127.0.0.1:1/canary")
    for end in range(1, len(text) + 1):  # as it streams in
        inspect(markdown_html(text[:end]))


@given(
    st.lists(
        st.sampled_from([*PAYLOADS, "`", "```", "\n", "\n\n", "    ", "> ", "- ", "|", "[", "](", ")", "<", '"']),
        max_size=6,
    )
)
@settings(max_examples=150, deadline=None)
def test_mixtures(pieces: list[str]) -> None:
    inspect(markdown_html("".join(pieces)))


@given(st.text())
@settings(max_examples=150, deadline=None)
def test_any_text(text: str) -> None:
    inspect(markdown_html(text))


def test_markdown_is_drawn() -> None:
    html = markdown_html(
        "# Title\n\n**bold** ~~gone~~ [site](https://example.org)\n\n"
        "| a | b |\n|---|--:|\n| 1 | 2 |\n\n```python\nx < 1\n```"
    )
    for piece in ("<h1>", "<strong>bold</strong>", "<del>", "<table>", 'href="https://example.org"', "x &lt; 1"):
        assert piece in html
    assert "<a" in markdown_html("![a picture](https://example.org/x.png)")
    assert markdown_html("![p](data:image/png;base64,AAAA)").count("<") == 2  # the paragraph, nothing else
