"""``%%ollama chat --tools``: functions of the notebook run only when the model calls them, and every call is shown."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from IPython.core.error import UsageError
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient, chat_reply
from support.servers import RunningServer

from ollama_nb import Client
from ollama_nb.notebook.display import Interrupted, TerminalScreen
from ollama_nb.notebook.magics import register

RAN: list[str] = []


def get_weather(city: str) -> dict[str, Any]:
    """Get the current weather in a city"""
    RAN.append(city)
    return {"temperature": 18, "condition": "sunny"}


def area(width: float, height: float = 1) -> Any:
    raise RuntimeError("<b>no</b>")


def wants(name: str, content: str = "", **arguments: Any) -> list[Any]:
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": name, "arguments": arguments}}]}
    *chunks, last = chat_reply(*filter(None, [content]), thinking="Hm.")
    return [*chunks, {"message": message, "done": False}, last]


def run(shell: InteractiveShell, code: str) -> Any:
    result = shell.run_cell(code, store_history=True)
    if error := result.error_before_exec or result.error_in_exec:
        raise error
    return shell.user_ns.get("_ollama")


def use(shell: InteractiveShell, *replies: Any) -> ScriptedClient:
    RAN.clear()
    client = ScriptedClient(*replies)
    register(shell, lambda: client)
    shell.user_ns.update(get_weather=get_weather, area=area, five=5)
    return client


def test_a_call_runs_and_is_shown_with_its_result(shell: InteractiveShell, displays: list[Any]) -> None:
    client = use(
        shell, wants("get_weather", "Let me see.", city="<i>Oslo"), chat_reply("**Sunny**."), chat_reply("Yes")
    )
    answer = run(shell, "%%ollama chat m --tools get_weather,area\nAnd the weather?")
    assert (answer, RAN) == ("**Sunny**.", ["<i>Oslo"])
    assert answer.calls[0].content == '{"temperature": 18, "condition": "sunny"}'
    first, second = client.asked
    assert [tool["function"]["name"] for tool in first["tools"]] == ["get_weather", "area"]
    assert [message["role"] for message in second["messages"]] == ["user", "assistant", "tool"]
    page = displays[-1]["data"]
    assert page["text/plain"] == (
        'Let me see.\n\nget_weather(city=\'<i>Oslo\') → {"temperature": 18, "condition": "sunny"}\n\n**Sunny**.'
    )
    html = page["text/html"]
    assert html.index("Let me see.") < html.index("get_weather(city=") < html.index("&quot;sunny&quot;")
    assert html.index("&quot;sunny&quot;") < html.index("<strong>Sunny")
    assert "&lt;i&gt;Oslo" in html and "<i>Oslo" not in html
    assert any(
        "get_weather" in shown["data"]["text/plain"] and "→" not in shown["data"]["text/plain"] for shown in displays
    )
    run(shell, "%%ollama chat m\nSure?")
    assert [message["role"] for message in client.asked[2]["messages"]] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "user",
    ]
    assert "tools" not in client.asked[2]


def test_an_error_of_a_function_goes_back_and_is_shown(shell: InteractiveShell, displays: list[Any]) -> None:
    client = use(shell, wants("area", width="2"), chat_reply("It is broken."))
    assert run(shell, "%%ollama chat m --tools area\nHow large?") == "It is broken."
    assert client.asked[1]["messages"][-1]["content"] == "error: RuntimeError: <b>no</b>"
    assert "error: RuntimeError: &lt;b&gt;no&lt;/b&gt;" in displays[-1]["data"]["text/html"]


def test_without_the_flag_nothing_runs(shell: InteractiveShell) -> None:
    use(shell, wants("get_weather", city="Oslo"))
    run(shell, "%%ollama chat m\nAnd the weather?")
    assert RAN == []


def test_only_named_functions_run(shell: InteractiveShell) -> None:
    client = use(shell, wants("get_weather", city="Oslo"), chat_reply("Sorry."))
    run(shell, "%%ollama chat m --tools area\nAnd the weather?")
    assert RAN == []
    assert client.asked[1]["messages"][-1]["content"] == "error: there is no tool `get_weather`; there are: area"


def test_a_call_can_be_required(shell: InteractiveShell) -> None:
    client = use(shell, wants("get_weather", city="Oslo"), chat_reply("Sunny."))
    run(shell, "%%ollama chat m --tools get_weather,area --tool-choice get_weather\n你好")
    choice = {"type": "function", "function": {"name": "get_weather"}}
    assert [request.get("tool_choice") for request in client.asked] == [choice, None]


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("--tools get_wether", "--tools get_wether: no such variable, did you mean `get_weather`?"),
        ("--tools five", "tool `five`: 5 is not a function"),
        ("--tools area --format json", "leave out `--format` or `--tools`"),
        ("--tools area --tool-choice all", '"all" is not auto, none, required or one of the tools: area'),
        ("--tool-choice required", "--tool-choice needs functions to choose from: `--tools f,g`"),
    ],
)
def test_mistakes_are_reported_before_any_request(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], flags: str, why: str
) -> None:
    client = use(shell)
    with pytest.raises(UsageError):
        run(shell, f"%%ollama chat m {flags}\nHow large?")
    assert why in capsys.readouterr().err
    assert client.asked == []


def test_interrupting_a_function_keeps_the_answer_so_far(shell: InteractiveShell) -> None:
    client = use(shell, wants("get_weather", city="Oslo"), wants("stop", "Now this."), chat_reply("Fine."))

    def stop() -> None:
        raise KeyboardInterrupt

    shell.user_ns["stop"] = stop
    with pytest.raises(Interrupted):
        run(shell, "%%ollama chat m --tools get_weather,stop\nAnd the weather?")
    kept = shell.user_ns["_ollama"]
    assert (kept, kept.reason, [called.name for called in kept.calls]) == ("", "interrupted", ["get_weather"])
    run(shell, "%%ollama chat m\nGo on")
    roles = [message["role"] for message in client.asked[-1]["messages"]]
    assert roles == ["user", "assistant", "tool", "assistant", "user"]


def test_a_terminal_s_text_only_grows(shell: InteractiveShell, monkeypatch: pytest.MonkeyPatch) -> None:
    logs: list[str] = []
    monkeypatch.setattr(TerminalScreen, "_print", lambda screen, log: logs.append(log))
    use(shell, wants("get_weather", "Let me see.", city="Oslo"), chat_reply("Sunny.", thinking="So.\n"))
    run(shell, "%%ollama chat m --tools get_weather\nAnd the weather?")
    assert all(later.startswith(earlier) for earlier, later in pairwise(logs))
    assert logs[-1] == (
        "Thinking...\nHm.\n...done thinking.\n\nLet me see.\n\nget_weather(city='Oslo') → "
        '{"temperature": 18, "condition": "sunny"}\n\nThinking...\nSo.\n...done thinking.\n\nSunny.\n'
    )


@pytest.mark.model
def test_a_real_model_calls_and_answers(shell: InteractiveShell, real_server: RunningServer) -> None:
    use(shell)
    register(shell, lambda: Client(real_server.url))
    answer = run(shell, "%%ollama chat sprout --think=false --tools get_weather\nWhat is the weather in Paris?")
    assert (answer, RAN) == ("The weather in Paris is sunny, with 18 degrees.", ["Paris"])
    answer = run(shell, "%%ollama chat sprout --think=false --tools get_weather\nHello")
    assert answer and RAN == ["Paris"]
