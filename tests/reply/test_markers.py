"""The marker matcher against a search over the whole text."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.reply.markers import MarkerMatcher

MARKERS = st.lists(st.text("ab<", min_size=1, max_size=4), min_size=1, max_size=4)


def whole(markers: list[str], text: str) -> tuple[str, str | None, str]:
    found = [(text.find(marker), -len(marker), marker) for marker in markers if marker in text]
    if not found:
        return text, None, ""
    at, _, marker = min(found)
    return text[:at], marker, text[at + len(marker) :]


@settings(max_examples=200, deadline=None)
@given(MARKERS, st.lists(st.text("ab<", max_size=5), max_size=8))
def test_any_split_equals_a_search_over_the_whole_text(markers: list[str], chunks: list[str]) -> None:
    matcher = MarkerMatcher(markers)
    longest = max(map(len, markers))
    given_out, seen = "", ""
    for at, chunk in enumerate(chunks):
        text, marker, rest = matcher.feed(chunk)
        given_out, seen = given_out + text, seen + chunk
        if marker is not None:
            assert (given_out, marker, rest + "".join(chunks[at + 1 :])) == whole(markers, "".join(chunks))
            return
        assert len(seen) - len(given_out) < longest
    text, marker, rest = matcher.end()
    assert (given_out + text, marker, rest) == whole(markers, "".join(chunks))


def test_the_longest_marker_at_one_position_wins() -> None:
    matcher = MarkerMatcher(["<a", "<ab", "<abc"])
    assert matcher.feed("x<ab") == ("x", None, "")
    assert matcher.feed("d") == ("", "<ab", "d")
