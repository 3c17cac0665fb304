"""Python functions as tools: described, called with a model's arguments, run until the model answers."""

from __future__ import annotations

import asyncio
import functools
import threading
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel
from support.fake_servers import ScriptedServer, ndjson, ok

from ollama_nb.client.aio import AsyncOllama
from ollama_nb.client.chunks import Invocation
from ollama_nb.client.conversation import MAX_TOOL_ROUNDS
from ollama_nb.client.ollama import Ollama
from ollama_nb.client.tools import Tools, parse_docstring
from ollama_nb.errors import BadRequest, Cancelled, OllamaError


@dataclass
class Place:
    name: str
    height: int = 0


def forecast(
    city: str,
    unit: Literal["celsius", "kelvin"] = "celsius",
    days: int | None = None,
    near: Annotated[float, "kilometres around it"] = 0,
    *more: str,
    place: Place | None = None,
    free=None,
    **others: Any,
) -> Any:
    """Tell the weather of a city.

    Also of small ones.

    Args:
        city: Its name,
            as in the atlas.
        unit (str, optional): Of the temperature.

    Returns:
        str: Words.
    """
    return {"city": city, "days": days, "near": near, "place": place and place.name}


def test_a_function_is_described_by_its_hints_and_its_docstring() -> None:
    (expected,) = Tools([forecast]).wire
    assert expected["type"] == "function"
    assert expected["function"]["name"] == "forecast"
    assert expected["function"]["description"] == "Tell the weather of a city.\n\nAlso of small ones."
    parameters = expected["function"]["parameters"]
    assert (parameters["type"], parameters["required"]) == ("object", ["city"])
    assert parameters["properties"] == {
        "city": {"type": "string", "description": "Its name, as in the atlas."},
        "unit": {"type": "string", "enum": ["celsius", "kelvin"], "description": "Of the temperature."},
        "days": {"type": "integer"},
        "near": {"type": "number", "description": "kilometres around it"},
        "place": parameters["properties"]["place"],
        "free": {"type": "string"},
    }
    assert parameters["properties"]["place"]["properties"]["name"] == {"type": "string"}


def numpy_style(a: int, b: str) -> None:
    """Do it.

    Parameters
    ----------
    a : int
        The first: it counts.
    b
        The second,
        over two lines.

    Returns
    -------
    None
        Nothing.
    """


def sphinx_style(a: int, b: str) -> None:
    """Do it.

    :param int a: The first: it counts.
    :param b: The second,
        over two lines.
    :returns: Nothing.
    """


@pytest.mark.parametrize("function", [numpy_style, sphinx_style])
def test_other_docstring_styles(function: Any) -> None:
    assert parse_docstring(function) == ("Do it.", {"a": "The first: it counts.", "b": "The second, over two lines."})


@pytest.mark.parametrize(
    ("text", "read"),
    [
        (None, ("", {})),
        ("Note: a colon is no section.\nExample: neither.", ("Note: a colon is no section.\nExample: neither.", {})),
        ("求两数之和。\n\nArgs:\n    甲: 第一个数。\n", ("求两数之和。", {"甲": "第一个数。"})),
        ("Args:\n  a: one\n\n    more: of it\nRaises:\n  b: no\n", ("", {"a": "one", "more": "of it"})),
    ],
)
def test_odd_docstrings(text: str | None, read: Any) -> None:
    def function() -> None: ...

    function.__doc__ = text
    assert parse_docstring(function) == read


class City(BaseModel):
    name: str
    people: int


def call(name: str, **arguments: Any) -> Invocation:
    return Tools([forecast, visit]).invoke(Invocation(name, arguments))


def visit(city: City, stops: list[int]) -> str:
    return f"{city.name}: {sum(stops)}"


def test_arguments_get_the_types_of_the_hints() -> None:
    found = call("forecast", city="Oslo", days="3", near=2, place={"name": "hill", "height": 7})
    assert found.content == '{"city": "Oslo", "days": 3, "near": 2.0, "place": "hill"}' and not found.failed
    found = call("visit", city={"name": "奥斯陆", "people": 5}, stops="[1, 2]")
    assert found.content == "奥斯陆: 3"
    assert str(call("forecast", city="Oslo")) == "forecast(city='Oslo')"


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("nosuch", {}, "error: there is no tool `nosuch`; there are: forecast, visit"),
        ("forecast", {}, "error: the argument `city` is missing"),
        ("forecast", {"town": "Oslo"}, "error: there is no argument `town`; there are: city, unit, days"),
        ("forecast", {"city": 5}, "error: the argument `city` is wrong: Expected `str`, got `int`"),
        ("forecast", {"city": "x", "unit": "f"}, "error: the argument `unit` is wrong: Invalid enum value 'f'"),
        ("forecast", {"city": "x", "place": {}}, "error: the argument `place` is wrong: Object missing"),
        ("visit", {"city": {"name": "x", "people": 1}, "stops": ["a"]}, "error: the argument `stops` is wrong: "),
    ],
)
def test_wrong_calls_are_reported_to_the_model(name: str, arguments: dict[str, Any], expected: str) -> None:
    found = call(name, **arguments)
    assert found.failed and (found.content or "").startswith(expected)


def test_an_exception_is_a_result_but_an_interrupt_is_raised() -> None:
    def weather(kind: str) -> None:
        raise KeyboardInterrupt if kind == "stop" else RuntimeError("no sensor")

    assert Tools([weather]).invoke(Invocation("weather", {"kind": "x"})) == Invocation(
        "weather", {"kind": "x"}, "error: RuntimeError: no sensor", failed=True
    )
    with pytest.raises(KeyboardInterrupt):
        Tools([weather]).invoke(Invocation("weather", {"kind": "stop"}))


@pytest.mark.parametrize(
    ("value", "text"), [("as is", "as is"), (None, "null"), ({"水": 1}, '{"水": 1}'), ({1}, "{1}")]
)
def test_results_as_the_model_receives_them(value: Any, text: str) -> None:
    assert Tools({"give": lambda: value}).invoke(Invocation("give", {})).content == text


async def later() -> None: ...


def unreadable(a: Nowhere) -> None: ...  # type: ignore[name-defined]  # noqa: F821


def of_numbers(a: complex) -> None: ...


@pytest.mark.parametrize(
    ("functions", "why"),
    [
        ([lambda: 0], "is not a function with a name"),
        ([5], "5 is not a function with a name"),
        ({"five": 5}, "tool `five`: 5 is not a function"),
        ([forecast, forecast], "two functions `forecast`"),
        ([later], "`later` is asynchronous"),
        ([unreadable], "`unreadable`: its type hints cannot be read: name 'Nowhere'"),
        ([of_numbers], "tool `of_numbers`, parameter `a`: .* cannot be the shape"),
        ([len], "tool `len`: its parameter `obj` is positional-only"),
        ([max], "tool `max`: Python does not know its parameters"),
    ],
)
def test_values_that_cannot_be_tools_are_refused_at_once(functions: Any, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        Tools(functions)


def test_partials_and_methods_with_given_names() -> None:
    class Shop:
        def price(self, item: str) -> int:
            """What it costs."""
            return len(item)

    tools = Tools({"price": Shop().price, "ten": functools.partial(lambda a, b: int(a) + b, b=10)})
    assert [expected["function"]["name"] for expected in tools.wire] == ["price", "ten"]
    assert [*tools.wire[0]["function"]["parameters"]["properties"]] == ["item"]
    assert tools.invoke(Invocation("price", {"item": "abc"})).content == "3"
    assert tools.invoke(Invocation("ten", {"a": "5"})).content == "15"


# in conversations


def calls(*wanted: tuple[str, dict[str, Any]], content: str = "") -> Any:
    written = [{"id": f"c{at}", "function": {"name": f, "arguments": given}} for at, (f, given) in enumerate(wanted)]
    message = {"role": "assistant", "content": content, "thinking": "I need it."}
    return ndjson(
        {"message": message, "done": False},
        {"message": {"role": "assistant", "content": "", "tool_calls": written}, "done": False},
        {"message": {"role": "assistant", "content": ""}, "done": True, "done_reason": "stop", "eval_count": 3},
    )


def says(text: str) -> Any:
    message = {"role": "assistant", "content": text}
    return ndjson({"message": message, "done": True, "done_reason": "stop", "eval_count": 7})


def weather(city: str) -> dict[str, int]:
    """The weather of a city."""
    return {"degrees": len(city)}


def test_calls_run_and_their_results_go_back(server: ScriptedServer, ollama: Ollama) -> None:
    paris, rome = ("weather", {"city": "Paris"}), ("weather", {"city": "Rome"})
    server.routes["POST /api/chat"] = [
        calls(paris, rome, content="Let me see."),
        says("5 and 4 degrees."),
        says("Hi."),
    ]
    chat = ollama.chat_session("m", tools=[weather], temperature=0)
    answer = chat.ask("And the weather?")
    assert (answer, answer.thinking, answer.reason) == ("5 and 4 degrees.", "", "stop")
    assert answer.stats is not None and answer.stats.output_tokens == 7
    assert [(str(found), found.content) for found in answer.calls] == [
        ("weather(city='Paris')", '{"degrees": 5}'),
        ("weather(city='Rome')", '{"degrees": 4}'),
    ]
    first, second = server.asked("POST /api/chat")
    assert first["tools"] == second["tools"] == Tools([weather]).wire
    assert second["options"] == {"temperature": 0}
    question, reply, *results = second["messages"]
    assert question == {"role": "user", "content": "And the weather?"}
    assert (reply["content"], reply["thinking"], len(reply["tool_calls"])) == ("Let me see.", "I need it.", 2)
    assert results == [
        {"role": "tool", "content": '{"degrees": 5}', "tool_name": "weather", "tool_call_id": "c0"},
        {"role": "tool", "content": '{"degrees": 4}', "tool_name": "weather", "tool_call_id": "c1"},
    ]
    assert chat.messages == [*second["messages"], {"role": "assistant", "content": "5 and 4 degrees."}]
    assert chat.ask("Hello", tools=()) == "Hi."
    assert "tools" not in server.asked("POST /api/chat")[-1]
    chat.undo()
    chat.undo()
    assert chat.messages == []


def test_pieces_of_all_rounds_come_and_the_answer_is_the_last(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = [
        calls(("weather", {"city": "Oslo"}), content="Hm. "),
        says("4 degrees."),
    ]
    chat = ollama.chat_session("m")
    with chat.stream("And the weather?", tools={"weather": weather}) as pieces:
        assert [*pieces] == ["Hm. ", "4 degrees."]
    assert pieces.answer == "4 degrees." and pieces.answer.calls[0].content == '{"degrees": 4}'
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("choice", "first", "second"),
    [
        ("auto", None, None),
        ("required", "required", None),
        ("weather", {"type": "function", "function": {"name": "weather"}}, None),
        ("none", "none", "none"),
    ],
)
def test_a_choice_of_tools_is_for_the_first_reply(
    server: ScriptedServer, ollama: Ollama, choice: str, first: Any, second: Any
) -> None:
    """Otherwise a model that must call a function could never answer."""
    server.routes["POST /api/chat"] = [calls(("weather", {"city": "Oslo"})), says("4 degrees."), says("Hi.")]
    chat = ollama.chat_session("m", tools=[weather], tool_choice=choice, parallel_tool_calls=False)
    assert chat.ask("And the weather?") == "4 degrees."
    asked = server.asked("POST /api/chat")
    assert [request.get("tool_choice") for request in asked] == [first, second]
    assert [request["parallel_tool_calls"] for request in asked] == [False, False]
    chat.ask("Hello", tool_choice="none")
    assert server.asked("POST /api/chat")[-1]["tool_choice"] == "none"


def test_a_choice_of_tools_with_await(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = [calls(("天气", {"city": "Oslo"})), says("4 degrees.")]
    chat = AsyncOllama(ollama).chat_session("m", tools={"天气": weather})
    assert asyncio.run(chat.ask("And the weather?", tool_choice="天气")) == "4 degrees."
    choices = [request.get("tool_choice") for request in server.asked("POST /api/chat")]
    assert choices == [{"type": "function", "function": {"name": "天气"}}, None]


@pytest.mark.parametrize(
    ("tools", "choice", "why"),
    [
        ([weather], "wether", '"wether" is not auto, none, required or one of the tools: weather'),
        ([], "required", "tool_choice requires a tool call, but there are no tools"),
        ([], "weather", "one of the tools: none"),
    ],
)
def test_choices_that_are_refused_at_once(ollama: Ollama, tools: Any, choice: str, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        ollama.chat_session("m", tools=tools, tool_choice=choice)
    with pytest.raises(BadRequest, match=why):
        ollama.chat_session("m").ask("Hello", tools=tools, tool_choice=choice)


def test_without_tools_a_call_runs_nothing(server: ScriptedServer, ollama: Ollama) -> None:
    ran: list[str] = []
    message = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "ran", "arguments": {}}}]}
    server.routes["POST /api/chat"] = ok({"message": message, "done": True, "done_reason": "stop"})
    ollama.chat_session("m").ask("Run it")
    assert ran == [] and len(server.asked("POST /api/chat")) == 1


def test_a_model_that_only_calls_tools_is_stopped(server: ScriptedServer, ollama: Ollama) -> None:
    ran: list[str] = []
    server.routes["POST /api/chat"] = lambda request: calls(("look", {}))
    chat = ollama.chat_session("m", tools={"look": lambda: ran.append("x")})
    with pytest.raises(OllamaError, match=rf"called tools {MAX_TOOL_ROUNDS + 1} times in a row and gave no answer"):
        chat.ask("Look!")
    assert len(ran) == MAX_TOOL_ROUNDS and chat.messages == []


def test_a_typed_answer_calls_nothing(server: ScriptedServer, ollama: Ollama) -> None:
    server.routes["POST /api/chat"] = lambda request: ok(
        {"message": {"role": "assistant", "content": "5"}, "done": True, "done_reason": "stop"}
    )
    chat = ollama.chat_session("m", tools=[weather])
    assert chat.ask("How many?", returns=int) == 5
    assert "tools" not in server.asked("POST /api/chat")[-1]
    with pytest.raises(BadRequest, match="calls no tools: ask in two questions"):
        chat.ask("How many?", returns=int, tools=[weather])
    with pytest.raises(BadRequest, match=r"tools belong to a conversation: `chat_session\(MODEL, tools"):
        ollama.ask("m", "How many?", tools=[weather])


def test_closing_a_stream_while_a_tool_runs_sends_no_further_request(server: ScriptedServer, ollama: Ollama) -> None:
    chat = ollama.chat_session("m", tools={"close": lambda: pieces.close(), "other": lambda: None})
    server.routes["POST /api/chat"] = [calls(("close", {}), ("other", {}))]
    pieces = chat.stream("Go")
    with pytest.raises(Cancelled):
        list(pieces)
    assert len(server.asked("POST /api/chat")) == 1 and chat.messages == []


def test_awaited_conversations_call_in_their_thread(server: ScriptedServer, ollama: Ollama) -> None:
    threads: list[str] = []

    def weather(city: str) -> int:
        threads.append(threading.current_thread().name)
        return 4

    server.routes["POST /api/chat"] = [calls(("weather", {"city": "Oslo"})), says("4 degrees.")]
    chat = AsyncOllama(ollama).chat_session("m", tools=[weather])
    assert asyncio.run(chat.ask("And the weather?")) == "4 degrees."
    assert threads[0].startswith("ollama-nb-call")
    assert [message["role"] for message in chat.messages] == ["user", "assistant", "tool", "assistant"]
