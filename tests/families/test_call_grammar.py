"""Grammars of tool calls: they accept calls as models write them, and whatever they allow is parsed as valid calls.

Constraints are compiled for sprout's vocabulary, which has ``<tool_call>`` and ``<think>`` as special tokens.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Any

import jsonschema
import numpy as np
import pytest
from support.replies import in_pieces, outcome, read_all

from ollama_nb import families
from ollama_nb.api.messages import Message, Tool
from ollama_nb.api.options import Options
from ollama_nb.engine.constraint import ConstraintCompiler
from ollama_nb.engine.llama import LlamaModel
from ollama_nb.engine.sampler import Sampler, SamplingParameters
from ollama_nb.errors import BadRequest
from ollama_nb.reply import call_grammar
from ollama_nb.reply.output import ReplyContext
from ollama_nb.sprout import GGUF

NAMES = sorted(name for name, spec in families.parsers().items() if spec.tools)


class Vocabulary:
    """Compiles grammars for sprout's vocabulary and drives the constraints."""

    def __init__(self) -> None:
        self.model = LlamaModel(str(GGUF), vocab_only=True)
        self.compiler = ConstraintCompiler(self.model)
        self.pieces = self.model.pieces()
        ends = ("\n</parameter>\n", "</arg_value>", "</atem:parameter>", "<escape>", QUOTE, '"', "}", "]")
        self._ends = [self.model.tokenize(end, add_special=False) for end in ends]
        closes = (b'"', b"</", b"}", b"]", b"<", b")", b">", b"\n")
        self._closing = np.array([3.0 if any(mark in piece for mark in closes) else 0.0 for piece in self.pieces])

    def format(self, parser: str, tools: Sequence[Tool], *, parallel: bool, last: Message | None = None) -> str:
        spec = families.parsers()[parser]
        assert spec.call_grammar is not None
        return call_grammar.encode(spec.call_grammar(ReplyContext(tuple(tools), False, last), parallel))

    def accepts(self, format: str, text: str) -> bool:
        """Whether the constraint allows exactly this text."""
        constraint = self.compiler.compile(format)
        sampler = Sampler(SamplingParameters.from_options(Options(temperature=0.0), 64))
        try:
            for token in self.model.tokenize(text, add_special=False):
                row = np.zeros(self.model.n_vocab, np.float32)
                row[token] = 9
                if not constraint.allows(token) or constraint.sample(sampler, row, []) != token:
                    return False
            return constraint.complete or constraint.allows(self.model.eos)
        finally:
            sampler.close()

    def stubborn_text(self, format: str, liked: bytes, steps: int = 150) -> str:
        """What a model writes that prefers these characters to all others, and opening brackets to the rest."""
        constraint = self.compiler.compile(format)
        sampler = Sampler(SamplingParameters.from_options(Options(temperature=0.0), 64))
        row = np.zeros(self.model.n_vocab, np.float32)
        for weight, letters in ((20, b"["), (40, liked)):
            row[[token for token, piece in enumerate(self.pieces) if piece and not piece.strip(letters)]] = weight
        row[self.model.eos] = -40
        out: list[bytes] = []
        try:
            while not constraint.complete and len(out) < steps:
                out.append(self.pieces[constraint.sample(sampler, row.copy(), [])])
            return b"".join(out).decode("utf-8", "replace")
        finally:
            sampler.close()

    def random_text(self, format: str, seed: int, most: int = 300) -> str | None:
        """A random text that the constraint allows; None if it has not ended after ``most`` tokens.

        Now and then, the tokens of a text that ends a value become likely.
        """
        dice, ending = random.Random(seed), list[int]()
        constraint, random_rows = self.compiler.compile(format), np.random.default_rng(seed)
        options = Options(temperature=1.0, top_k=0, top_p=1.0, seed=seed)
        sampler = Sampler(SamplingParameters.from_options(options, 64))
        out: list[bytes] = []
        try:
            for step in range(most):
                weights = random_rows.normal(0, 2, self.model.n_vocab) + self._closing * (0.5 + step / 40)
                ending = ending or (dice.choice(self._ends)[:] if dice.random() < 0.1 else [])
                if ending:
                    weights[ending.pop(0)] += 30
                token = constraint.sample(sampler, weights.astype(np.float32), [])
                if token == self.model.eos:
                    break
                out.append(self.pieces[token])
                if constraint.complete:
                    break
            else:
                return None
            return b"".join(out).decode()
        finally:
            sampler.close()


@pytest.fixture(scope="module")
def vocabulary() -> Iterator[Vocabulary]:
    vocabulary = Vocabulary()
    yield vocabulary
    vocabulary.model.close()


def tool(name: str, properties: dict[str, Any] | None = None, required: Sequence[str] = (), **more: Any) -> Tool:
    schema = {"type": "object", "properties": properties or {}, "required": list(required), **more}
    return {"type": "function", "function": {"name": name, "parameters": schema}}


WEATHER = tool(
    "get_weather",
    {"city": {"type": "string"}, "days": {"type": "integer"}, "place": {"type": "object"}},
    ["city"],
)
NOW = tool("now")
ARGUMENTS = {"city": "北京 Paris", "days": 2, "place": {"lat": 1.5, "tags": ["a"]}}
JSON = '{"city": "北京 Paris", "days": 2, "place": {"lat": 1.5, "tags": ["a"]}}'
COMPACT = '{"city":"北京 Paris","days":2,"place":{"lat":1.5,"tags":["a"]}}'
PLACE = '{"lat":1.5,"tags":["a"]}'
QWEN = f'<tool_call>\n{{"name": "get_weather", "arguments": {JSON}}}\n</tool_call>'
QWEN_NOW = '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
XML = (
    "<tool_call>\n<function=get_weather>\n<parameter=city>\n北京 Paris\n</parameter>\n"
    f"<parameter=days>\n2\n</parameter>\n<parameter=place>\n{PLACE}\n</parameter>\n</function>\n</tool_call>"
)
XML_NOW = "<tool_call>\n<function=now>\n</function>\n</tool_call>"
GLM = (
    "<tool_call>get_weather<arg_key>city</arg_key><arg_value>北京 Paris</arg_value><arg_key>days</arg_key>"
    f"<arg_value>2</arg_value><arg_key>place</arg_key><arg_value>{PLACE}</arg_value></tool_call>"
)
LAGUNA = (
    GLM.replace("</arg_key>", "</arg_key>\n")
    .replace("</arg_value>", "</arg_value>\n")
    .replace("weather<", "weather\n<")
)
QUOTE = '<|"|>'
GEMMA = f"call:get_weather{{city:MARK北京 ParisMARK,days:2,place:{PLACE}}}"
PYTHON = f'get_weather(city="北京 Paris", days=2, place={PLACE})'
GLIMMER = ' to={0}<|message|><atem:function_calls>\n<atem:invoke name="{0}">\n{1}</atem:invoke>\n</atem:function_calls>'
PARAMETERS = "".join(
    f'<atem:parameter name="{name}">{value}</atem:parameter>\n'
    for name, value in (("city", "北京 Paris"), ("days", "2"), ("place", PLACE))
)
ACTION = '\n\n    {{"tool_call_id": "{}", "tool_name": "{}", "parameters": {}}}'
HARMONY = "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>{}"
DEEPSEEK = "<｜tool▁call▁begin｜>{}<｜tool▁sep｜>{}<｜tool▁call▁end｜>"
COGITO = "<｜tool▁call▁begin｜>function<｜tool▁sep｜>{}\n```json\n{}\n```<｜tool▁call▁end｜>"

# Parser → the call of get_weather, and the calls of get_weather and now, as the models write them
WRITTEN = {
    **dict.fromkeys(
        ("qwen3", "qwen3-thinking", "qwen3-vl-instruct", "qwen3-vl-thinking"), (QWEN, f"{QWEN}\n{QWEN_NOW}")
    ),
    **dict.fromkeys(
        ("qwen3-coder", "qwen3.5", "ornith", "nemotron-3-nano", "nemotron-3.5-nano"), (XML, f"{XML}\n{XML_NOW}")
    ),
    **dict.fromkeys(("glm-4.7", "glm-ocr", "poolside-v1"), (GLM, f"{GLM}<tool_call>now</tool_call>")),
    "laguna": (LAGUNA, f"{LAGUNA}\n<tool_call>now\n</tool_call>"),
    **dict.fromkeys(
        ("gemma4", "gemma4-no-thinking"),
        (
            "<|tool_call>" + GEMMA.replace("MARK", QUOTE) + "<tool_call|>",
            "<|tool_call>" + GEMMA.replace("MARK", QUOTE) + "<tool_call|><|tool_call>call:now{}<tool_call|>",
        ),
    ),
    "functiongemma": (
        f"<start_function_call>{GEMMA.replace('MARK', '<escape>')}<end_function_call>",
        f"<start_function_call>{GEMMA.replace('MARK', '<escape>')}<end_function_call>"
        "<start_function_call>call:now{}<end_function_call>",
    ),
    "olmo3": (f"<function_calls>{PYTHON}</function_calls>", f"<function_calls>{PYTHON}\nnow()</function_calls>"),
    **dict.fromkeys(
        ("lfm2", "lfm2-thinking"),
        (
            f"<|tool_call_start|>[{PYTHON.replace(', ', ',')}]<|tool_call_end|>",
            f"<|tool_call_start|>[{PYTHON.replace(', ', ',')},now()]<|tool_call_end|>",
        ),
    ),
    "glimmer": (
        GLIMMER.format("get_weather", PARAMETERS),
        GLIMMER.format("get_weather", PARAMETERS) + "<|eom|><|start|>assistant" + GLIMMER.format("now", ""),
    ),
    "cohere": (
        f"<|START_ACTION|>[{ACTION.format(0, 'get_weather', JSON)}\n\n]<|END_ACTION|>",
        f"<|START_ACTION|>[{ACTION.format(0, 'get_weather', JSON)},{ACTION.format(1, 'now', '{}')}\n\n]<|END_ACTION|>",
    ),
    "harmony": (
        HARMONY.format("get_weather", COMPACT),
        HARMONY.format("get_weather", COMPACT) + "<|end|><|start|>assistant" + HARMONY.format("now", "{}"),
    ),
    "ministral": (
        f"[TOOL_CALLS]get_weather[ARGS]{JSON}",
        f"[TOOL_CALLS]get_weather[ARGS]{JSON}[TOOL_CALLS]now[ARGS]{{}}",
    ),
    "deepseek3": (
        f"<｜tool▁calls▁begin｜>{DEEPSEEK.format('get_weather', COMPACT)}<｜tool▁calls▁end｜>",
        f"<｜tool▁calls▁begin｜>{DEEPSEEK.format('get_weather', COMPACT)}{DEEPSEEK.format('now', '{}')}"
        "<｜tool▁calls▁end｜>",
    ),
    "cogito": (
        f"<｜tool▁calls▁begin｜>{COGITO.format('get_weather', COMPACT)}<｜tool▁calls▁end｜>",
        f"<｜tool▁calls▁begin｜>{COGITO.format('get_weather', COMPACT)}\n{COGITO.format('now', '{}')}"
        "<｜tool▁calls▁end｜>",
    ),
}


def parse(name: str, text: str, tools: Sequence[Tool], size: int = 0) -> dict[str, Any]:
    context = ReplyContext(tuple(tools), False, None)
    return outcome(read_all(families.parser(name).create(context), in_pieces(text, size)))


def test_every_family_with_tools_has_a_grammar() -> None:
    assert WRITTEN.keys() == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_written_calls_are_accepted_and_parsed(name: str, vocabulary: Vocabulary) -> None:
    one, two = WRITTEN[name]
    tools = (WEATHER, NOW)
    call = {"name": "get_weather", "arguments": ARGUMENTS}
    single, parallel = (vocabulary.format(name, tools, parallel=several) for several in (False, True))
    assert vocabulary.accepts(single, one)
    assert vocabulary.accepts(parallel, one)
    assert vocabulary.accepts(parallel, two)
    assert not vocabulary.accepts(single, two)
    assert parse(name, one, tools) == {"calls": [call]}
    assert parse(name, two, tools) == {"calls": [call, {"name": "now", "arguments": {}}]}
    assert not vocabulary.accepts(single, one.replace("get_weather", "get_news"))
    assert not vocabulary.accepts(single, "Hello.")
    assert not vocabulary.accepts(vocabulary.format(name, (NOW,), parallel=False), one)


# Random schemas

WORDS = ("city", "days", "城市", "note", "limit", "Wert")


def random_schema(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema of a value, objects and arrays at most twice nested."""
    kinds = ("string", "integer", "number", "boolean", "enum", "union", "array", "object")
    kind = dice.choice(kinds if depth < 2 else kinds[:6])
    match kind:
        case "integer" | "number":
            return {"type": kind} | dice.choice(({}, {"minimum": -3, "maximum": 40}, {"minimum": 5}))
        case "string":
            return {"type": "string"} | dice.choice(({}, {"maxLength": 8}, {"pattern": "^[a-c]{1,3}$"}))
        case "enum":
            return {"enum": dice.sample(["on", "off", "null", "7", "真"], 3)} | dice.choice(({}, {"type": "string"}))
        case "union":
            return dice.choice(
                (
                    {"type": ["string", "null"]},
                    {"anyOf": [{"type": "integer"}, {"type": "null"}]},
                    {"type": ["string", "integer"]},
                    {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}]},
                )
            )
        case "array":
            return {"type": "array", "items": random_schema(dice, depth + 1), "maxItems": 2}
        case "object":
            return random_object(dice, depth + 1)
    return {"type": "boolean"}


def random_object(dice: random.Random, depth: int = 0) -> dict[str, Any]:
    names = dice.sample(WORDS, dice.randint(0 if depth == 0 else 1, 3))
    properties = {name: random_schema(dice, depth) for name in names}
    return {"type": "object", "properties": properties, "required": dice.sample(names, len(names) // 2)}


@pytest.mark.parametrize("name", NAMES)
def test_whatever_a_grammar_allows_is_parsed_as_valid_calls(name: str, vocabulary: Vocabulary) -> None:
    dice = random.Random(name)
    ended = 0
    for seed in range(6):
        tools = [tool("search"), tool("天气")]
        for one in tools:
            one["function"]["parameters"] = random_object(dice)
        parallel = seed % 2 == 1
        text = vocabulary.random_text(vocabulary.format(name, tools, parallel=parallel), seed)
        if text is None:
            continue
        ended += 1
        for size in (0, 1, 5):
            found = parse(name, text, tools, size)
            assert found.keys() == {"calls"}, (text, found)
            assert parallel or len(found["calls"]) == 1
            for call in found["calls"]:
                schema = next(one for one in tools if one["function"]["name"] == call["name"])["function"]["parameters"]
                jsonschema.validate(call["arguments"], schema)
    assert ended >= 4


# What notations cannot express


def refusal(name: str, vocabulary: Vocabulary, *tools: Tool) -> str:
    with pytest.raises(BadRequest) as error:
        vocabulary.compiler.compile(vocabulary.format(name, tools, parallel=False))
    return error.value.message


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_that_cannot_be_constrained_is_refused_with_tool_and_keyword(
    name: str, vocabulary: Vocabulary
) -> None:
    inner = {"type": "object", "properties": {"x": {"type": "array", "items": {"not": {"type": "string"}}}}}
    message = refusal(name, vocabulary, NOW, tool("search", {"where": inner}))
    assert message == 'tool "search": unsupported schema keyword "not" at $.properties.where.properties.x.items'
    wrong = {"type": "function", "function": {"name": "f", "parameters": {"type": "array"}}}
    assert refusal(name, vocabulary, wrong) == 'tool "f": the "type" of its parameters must be "object"'


@pytest.mark.parametrize("name", ["qwen3.5", "olmo3", "glm-4.7", "gemma4", "glimmer"])
def test_notations_without_quotes_refuse_what_they_cannot_write(name: str, vocabulary: Vocabulary) -> None:
    assert "cannot express the name" in refusal(name, vocabulary, tool('say "hi"'))
    assert "of the argument" in refusal(name, vocabulary, tool("f", {"a<b": {"type": "string"}}))
    free = tool("f", {"a": {"type": "string"}}, patternProperties={"^x": {"type": "string"}})
    assert refusal(name, vocabulary, free) == 'tool "f": unsupported schema keyword "patternProperties" at $'


@pytest.mark.parametrize("pattern", ["(", "(?=a)b", "a$b", "^a|b$", r"(a)\1"])
def test_patterns_that_unquoted_text_cannot_follow_are_refused(vocabulary: Vocabulary, pattern: str) -> None:
    message = refusal("qwen3.5", vocabulary, tool("f", {"a": {"type": "string", "pattern": pattern}}))
    assert message == 'tool "f": unsupported schema keyword "pattern" at $.properties.a'


def test_a_constant_that_ends_the_call_is_refused(vocabulary: Vocabulary) -> None:
    message = refusal("qwen3", vocabulary, tool("f", {"a": {"const": "a</tool_call>b"}}))
    assert message == 'tool "f": its schema contains </tool_call>, which ends a call of this model'
    message = refusal("qwen3.5", vocabulary, tool("f", {"a": {"enum": ["</parameter>"]}}))
    assert message == 'tool "f": unsupported schema keyword "enum" at $.properties.a'


def test_strings_of_arguments_cannot_end_the_call(vocabulary: Vocabulary) -> None:
    """The end is spelled with ordinary tokens, as the special token itself is not allowed in a string."""
    say = tool("say", {"text": {"type": "string"}}, ["text"])
    format = vocabulary.format("olmo3", (say,), parallel=False)
    assert vocabulary.accepts(format, '<function_calls>say(text="a</function_call>s")</function_calls>')
    assert not vocabulary.accepts(format, '<function_calls>say(text="a</function_calls>")</function_calls>')
    for name in ("qwen3.5", "glm-4.7"):
        (written, _), format = WRITTEN[name], vocabulary.format(name, (WEATHER,), parallel=False)
        assert vocabulary.accepts(format, written.replace("Paris", "</b> <a>"))
        assert not vocabulary.accepts(format, written.replace("Paris", "</tool_cal" + "l>"))


@pytest.mark.parametrize("inner", [{"type": "string"}, {}, {"type": ["string", "null"], "maxLength": 40}], ids=str)
def test_strings_in_nested_values_cannot_end_the_call(vocabulary: Vocabulary, inner: dict[str, Any]) -> None:
    say = tool("say", {"texts": {"type": "array", "items": inner}}, ["texts"])
    written = {
        "qwen3.5": "<tool_call>\n<function=say>\n<parameter=texts>\n{}\n</parameter>\n</function>\n</tool_call>",
        "glm-4.7": "<tool_call>say<arg_key>texts</arg_key><arg_value>{}</arg_value></tool_call>",
        "functiongemma": "<start_function_call>call:say{texts:{}}<end_function_call>",
    }
    ends = {"qwen3.5": "</parameter>", "glm-4.7": "</arg_value>", "functiongemma": "<end_function_call>"}
    for name, text in written.items():
        format, end = vocabulary.format(name, (say,), parallel=False), ends[name]
        assert vocabulary.accepts(format, text.replace("{}", f'["a {end[:-1]}b", "<<b> 天"]')), name
        assert not vocabulary.accepts(format, text.replace("{}", f'["a {end}"]')), name


def test_a_pattern_for_texts_that_contain_none_of_some_tags() -> None:
    tags = ("<parameter=", "</parameter>", "</function>", "<tool_call>", "</tool_call>", "<|message|>")
    pattern = re.compile(call_grammar.not_containing(tags))
    parts = [tag[:length] for tag in tags for length in range(1, len(tag) + 1)] + ["<", ">", "a", "天", "\n"]
    dice = random.Random(1)
    for _ in range(5000):
        text = "".join(dice.choices(parts, k=dice.randint(0, 5)))
        assert bool(pattern.fullmatch(text)) == (not any(tag in text for tag in tags)), text


def test_references_between_schemas_are_followed(vocabulary: Vocabulary) -> None:
    unit, place = {"$ref": "#/$defs/Unit"}, {"$ref": "#/$defs/Place"}
    defs = {
        "Unit": {"enum": ["K", "摄氏"], "type": "string"},
        "Place": {"type": "object", "properties": {"u": unit}},
    }
    tools = [tool("f", {"unit": unit, "place": place}, **{"$defs": defs})]
    xml = '<parameter=unit>\n摄氏\n</parameter>\n<parameter=place>\n{"u": "K"}\n</parameter>\n'
    for name, text in (
        ("qwen3.5", XML_NOW.replace("now>\n", f"f>\n{xml}")),
        ("olmo3", '<function_calls>f(unit="摄氏", place={"u": "K"})</function_calls>'),
        ("qwen3", '<tool_call>\n{"name": "f", "arguments": {"unit": "摄氏", "place": {"u": "K"}}}\n</tool_call>'),
    ):
        format = vocabulary.format(name, tools, parallel=False)
        assert vocabulary.accepts(format, text), text
        assert not vocabulary.accepts(format, text.replace("摄氏", "F"))
        assert not vocabulary.accepts(format, text.replace('"K"', "3"))
        arguments = {"unit": "摄氏", "place": {"u": "K"}}
        assert parse(name, text, tools) == {"calls": [{"name": "f", "arguments": arguments}]}


@pytest.mark.parametrize("name", ["harmony", "glimmer"])
def test_a_call_after_the_beginning_of_an_answer_is_a_message_of_its_own(name: str, vocabulary: Vocabulary) -> None:
    last = Message("assistant", "Let me see. ")
    format = vocabulary.format(name, (WEATHER,), parallel=False, last=last)
    opening = {"harmony": "<|end|><|start|>assistant", "glimmer": "<|eom|><|start|>assistant"}[name]
    assert vocabulary.accepts(format, opening + WRITTEN[name][0])


TAGGED = ("functiongemma", "gemma4", "glimmer", "glm-4.7", "laguna", "qwen3-coder")
STUBBORN_NUMBERS: list[dict[str, Any]] = [
    {"type": "number"},
    {"type": "integer"},
    {"type": "number", "minimum": 0.12345678912345},
    {"type": "array", "items": {"type": "number", "exclusiveMaximum": 0.12345678912345}},
    {"type": "array", "items": {"allOf": [{"type": "number"}, {"minimum": 0}]}},
]


@pytest.mark.parametrize("schema", STUBBORN_NUMBERS, ids=str)
@pytest.mark.parametrize("parser", TAGGED)
def test_numbers_in_notations_without_json_end(vocabulary: Vocabulary, parser: str, schema: dict[str, Any]) -> None:
    """Numbers outside JSON end as those in JSON do, however long a model would write them."""
    format = vocabulary.format(parser, [tool("f", {"x": schema}, ["x"])], parallel=False)
    for liked in (b"0123456789", b"3", b"0.", b"9e"):
        text = vocabulary.stubborn_text(format, liked)
        assert max(map(len, re.findall("[0-9]+", text))) <= 20, text


@pytest.mark.parametrize("parser", TAGGED)
def test_values_without_a_schema_are_nested_to_a_limit(vocabulary: Vocabulary, parser: str) -> None:
    format = vocabulary.format(parser, [tool("f", {"x": {"type": "array"}}, ["x"])], parallel=False)
    text = vocabulary.stubborn_text(format, b"[")
    before_strings = re.sub('".*', "", text.partition("[")[2])
    assert before_strings.count("[") <= 16, text


@pytest.mark.parametrize("parser", ["glm-4.7", "gemma4", "qwen3"])
def test_narrow_bounds_of_a_number_stay_possible(vocabulary: Vocabulary, parser: str) -> None:
    schema = {"type": "number", "minimum": 1e-12, "maximum": 2e-12}
    format = vocabulary.format(parser, [tool("f", {"x": schema}, ["x"])], parallel=False)
    assert "f" in vocabulary.stubborn_text(format, b"0123456789")
