"""A cell output follows a stream: how often it is updated, and what it shows at the end."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient, chat_reply

from ollama_nb.errors import BadRequest
from ollama_nb.notebook.display import MAX_RATE, Interrupted, NotebookScreen, ReplyPage, TerminalScreen, follow
from ollama_nb.notebook.reply import ReplyState


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_ten_updates_a_second_and_a_last_one(shell: InteractiveShell, displays: list[Any]) -> None:
    clock, client = Clock(), ScriptedClient(chat_reply(*(f"{n} " for n in range(1000))))

    def tick() -> None:
        clock.now += 0.002

    client.before_chunk = tick
    page = ReplyPage(ReplyState("m"))
    follow(lambda: client.chat("m", []), page, NotebookScreen(live=True, clock=clock))
    assert 15 <= len(displays) <= 23  # two seconds
    assert displays[-1]["data"]["text/plain"] == page.reply.text
    assert [output["update"] for output in displays] == [False] + [True] * (len(displays) - 1)


def test_a_slow_stream_is_shown_word_by_word(shell: InteractiveShell, displays: list[Any]) -> None:
    clock, client = Clock(), ScriptedClient(chat_reply("a", "b", "c"))

    def tick() -> None:
        clock.now += 0.5

    client.before_chunk = tick
    follow(lambda: client.chat("m", []), ReplyPage(ReplyState("m")), NotebookScreen(live=True, clock=clock))
    assert [output["data"]["text/plain"] for output in displays] == ["", "a", "ab", "abc", "abc", "abc"]
    assert "m …" in displays[0]["data"]["text/html"]


def test_without_live_updates_there_is_one_display(shell: InteractiveShell, displays: list[Any]) -> None:
    client = ScriptedClient(chat_reply("a", "b"))
    follow(lambda: client.chat("m", []), ReplyPage(ReplyState("m")), NotebookScreen(live=False))
    assert [(output["data"]["text/plain"], output["update"]) for output in displays] == [("ab", False)]


def test_thinking_is_expanded_while_it_streams(shell: InteractiveShell) -> None:
    page, chunks = ReplyPage(ReplyState("m")), chat_reply("a", thinking="hmm")
    page.feed(chunks[0])
    assert page.html().startswith("<details open>")
    page.feed(chunks[1])
    assert page.html().startswith("<details><summary")


@pytest.mark.parametrize("end", [None, KeyboardInterrupt(), BadRequest("no")])
def test_a_terminal_s_text_only_grows(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], end: BaseException | None
) -> None:
    chunks = chat_reply("Two ", "words.", thinking="hm\n")
    client = ScriptedClient(chunks if end is None else [*chunks[:2], end])
    page, logs = ReplyPage(ReplyState("m")), []

    class Recorder(TerminalScreen):
        def _print(self, log: str) -> None:
            logs.append(log)
            super()._print(log)

    try:
        follow(lambda: client.chat("m", []), page, Recorder(live=True))
    except (Interrupted, BadRequest):
        assert end is not None
    assert all(later.startswith(earlier) for earlier, later in pairwise(logs))
    output = capsys.readouterr().out
    assert output == logs[-1]
    start = "Thinking...\nhm\n...done thinking.\n\nTwo "
    assert output == start + {None: "words.\n", KeyboardInterrupt: "\n\n[interrupted]\n"}.get(
        end and type(end), "\n\n[broken]\n"
    )
    assert client.closed == 1


def test_an_interrupt_while_the_request_starts(shell: InteractiveShell) -> None:
    def start() -> Any:
        raise KeyboardInterrupt

    page = ReplyPage(ReplyState("m"))
    with pytest.raises(Interrupted):
        follow(start, page, NotebookScreen(live=False))
    assert page.reply.reason == "interrupted"


def test_a_repeating_model_is_pointed_out_while_it_writes(shell: InteractiveShell) -> None:
    page = ReplyPage(ReplyState("m"))
    sentence = "The best of the best is often said of a person who has achieved exceptional success. "
    for chunk in chat_reply(*[sentence] * 4)[:-1]:
        page.feed(chunk)
        assert "repeating itself" not in page.html()
    for chunk in chat_reply(*[sentence] * 3)[:-1]:
        page.feed(chunk)
    assert "The model appears to be repeating itself. Interrupt the cell" in page.html()
    assert "repeating itself" not in page.plain()
    page.interrupt()
    assert "repeating itself" not in page.html()


def test_lists_and_tables_are_not_repetitions(shell: InteractiveShell) -> None:
    reply = ReplyState("m")
    reply.text = "".join(f"| row {at} | the same words in every row | and some more of them |\n" for at in range(200))
    assert not reply.is_repeating
    reply.text = "x" * 300
    assert not reply.is_repeating


def test_the_updates_of_a_long_answer_are_about_linear(shell: InteractiveShell, displays: list[Any]) -> None:
    """Twice the text takes twice the time and twice the bytes, not four times as many."""

    def sent(pieces: int) -> int:
        displays.clear()
        clock, client = Clock(), ScriptedClient(chat_reply(*["word " * 20 + "\n\n"] * pieces))

        def tick() -> None:
            clock.now += 0.25

        client.before_chunk = tick
        follow(lambda: client.chat("m", []), ReplyPage(ReplyState("m")), NotebookScreen(live=True, clock=clock))
        return sum(len(text) for output in displays for text in output["data"].values())

    short, long = sent(800), sent(1600)  # 80,000 and 160,000 characters in 200 and 400 seconds
    assert short <= MAX_RATE * 201 * 1.1
    assert long <= 2.2 * short
