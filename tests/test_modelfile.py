"""Modelfiles: the grammar as a table, and formatting as its inverse."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.messages import Message
from ollama_nb.errors import BadRequest
from ollama_nb.modelfile import Instruction, Modelfile, parse, quote, typed

FROM = Instruction("from", "m")
c = Instruction


@pytest.mark.parametrize(
    ("text", "instructions"),
    [
        ("FROM m", [FROM]),
        ("from m\n", [FROM]),
        ("  \tFrom  m  \n", [FROM]),
        ("# note\n\n  # another\nFROM m\n", [FROM]),
        ("FROM m # no comment", [c("from", "m # no comment")]),
        ("FROM m\nSYSTEM hi there", [FROM, c("system", "hi there")]),
        ("FROM m\r\nSYSTEM hi\r\n", [FROM, c("system", "hi")]),
        ("FROM m\rSYSTEM hi\r", [FROM, c("system", "hi")]),
        ('FROM m\nSYSTEM """a\nb"""\n', [FROM, c("system", "a\nb")]),
        ('FROM m\nSYSTEM """\na\n"""\n', [FROM, c("system", "\na\n")]),
        ('FROM m\nSYSTEM """a\r\nb"""\r\n', [FROM, c("system", "a\r\nb")]),
        ('FROM m\nSYSTEM "a\nb"\n', [FROM, c("system", "a\nb")]),
        ('FROM m\nSYSTEM "a "b" c"\n', [FROM, c("system", 'a "b" c')]),
        ('FROM m\nSYSTEM "a\\"\n', [FROM, c("system", "a\\")]),
        ('FROM m\nSYSTEM """a """ b"""\n', [FROM, c("system", 'a """ b')]),
        ('FROM m\nSYSTEM """a""" # note\nFROM x"""\n', [FROM, c("system", 'a""" # note\nFROM x')]),
        ('FROM m\nSYSTEM ""\n', [FROM, c("system", "")]),
        ('FROM m\nSYSTEM """"""\n', [FROM, c("system", "")]),
        ('FROM m\nSYSTEM """""\n"""\n', [FROM, c("system", '""\n')]),
        ("FROM m\nSYSTEM 'a\n", [FROM, c("system", "'a")]),
        ("FROM m\nSYSTEM \n", [FROM, c("system", "")]),
        ("FROM m\nSYSTEM a\u00a0b\u200dc\u3000d\n", [FROM, c("system", "abcd")]),
        ("FROM m\nSYSTEM a\tb\n", [FROM, c("system", "a\tb")]),
        ("FROM m\nSYSTEM 你好，世界！\n", [FROM, c("system", "你好，世界！")]),
        ("FROM m\nPARAMETER num_ctx 4096", [FROM, c("parameter", "4096", "num_ctx")]),
        ("FROM m\nPARAMETER  stop  <|im_end|>", [FROM, c("parameter", "<|im_end|>", "stop")]),
        ('FROM m\nPARAMETER stop "a "\n', [FROM, c("parameter", "a ", "stop")]),
        ("FROM m\nMESSAGE user hi\n", [FROM, c("message", "hi", "user")]),
        ('FROM m\nMESSAGE  assistant """a\nb"""', [FROM, c("message", "a\nb", "assistant")]),
        ("FROM m\nLICENSE MIT\nlicense Apache-2.0", [FROM, c("license", "MIT"), c("license", "Apache-2.0")]),
        ("FROM a\nFROM b\nADAPTER ./x.gguf", [c("from", "a"), c("from", "b"), c("adapter", "./x.gguf")]),
        (
            "FROM m\nRENDERER qwen3\nPARSER qwen3\nREQUIRES 0.14.0",
            [FROM, c("renderer", "qwen3"), c("parser", "qwen3"), c("requires", "0.14.0")],
        ),
    ],
)
def test_grammar(text: str, instructions: list[Instruction]) -> None:
    assert list(parse(text).instructions) == instructions
    assert list(parse(text.encode()).instructions) == instructions


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "no FROM line"),
        ("# only a comment", "no FROM line"),
        ("SYSTEM hi", "no FROM line"),
        ("FROM", "unexpected EOF"),
        ("FROM\n", "(line 2): command must be one of"),
        ("FROM m\nBAD x\n", "(line 2): command must be one of"),
        ("FROM m\nBAD\nx", "(line 3): command must be one of"),
        ("FROM m\r\nBAD x", "(line 3): command must be one of"),
        ("FROM m\n\nF0O x", "(line 3): command must be one of"),
        ("FROM m\n中 x", "(line 2): command must be one of"),
        ('FROM m\nSYSTEM """a', "unexpected EOF"),
        ('FROM m\nSYSTEM "a\n\n', "unexpected EOF"),
        ('FROM m\nSYSTEM """""', "unexpected EOF"),
        ("FROM m\nPARAMETER", "unexpected EOF"),
        ("FROM m\nPARAMETER stop", "unexpected EOF"),
        ("FROM m\nPARAMETER stop\n", "unexpected EOF: stop"),
        ("FROM m\nPARAMETER top-k 1\n", "unexpected EOF: top"),
        ("FROM m\nMESSAGE robot hi\n", '(line 2): message role must be one of "system", "user", or "assistant"'),
        ("FROM m\nMESSAGE User hi\n", '(line 2): message role must be one of "system", "user", or "assistant"'),
    ],
)
def test_errors(text: str, error: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(text)
    assert caught.value.message == error or (error.endswith("one of") and caught.value.message.startswith(error))


def test_the_error_for_an_unknown_instruction_names_all() -> None:
    with pytest.raises(BadRequest) as caught:
        parse("FROM m\nNOPE x")
    assert caught.value.message == (
        '(line 2): command must be one of "from", "license", "template", "system", "adapter", "draft", "renderer", '
        '"parser", "parameter", "message", or "requires"'
    )


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings(encoding: str) -> None:
    assert parse("FROM 模型\n".encode(encoding)).instructions == (Instruction("from", "模型"),)


def test_utf16_big_endian_and_broken_utf8() -> None:
    assert parse(b"\xfe\xff" + "FROM m".encode("utf-16-be")).instructions == (FROM,)
    assert parse(b"FROM m\nSYSTEM a\xffb").instructions[1] == Instruction("system", "a\ufffdb")


def test_line_numbers() -> None:
    instructions = parse('# x\nFROM m\n\nSYSTEM """a\nb"""\nPARAMETER seed 1').instructions
    assert [instruction.line for instruction in instructions] == [2, 4, 6]


def test_a_long_value_takes_linear_time() -> None:
    text = 'line of a licence " with quotes\n' * 50_000
    assert parse(f'FROM m\nLICENSE """{text}"""').instructions[1].value == text


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        ("plain text", "plain text"),
        ("a 'b' \"c\" d", "a 'b' \"c\" d"),
        ("a\nb", '"a\nb"'),
        (" a", '" a"'),
        ("a ", '"a "'),
        ('a\n"b"', '"""a\n"b""""'),
        (' "', '""" """"'),
        ('"a', '""""a"""'),
        ("\ta", '"""\ta"""'),
        ("", '""'),
    ],
)
def test_quote(value: str, printed: str) -> None:
    assert quote(value) == printed
    assert parse(f"FROM m\nSYSTEM {printed}\n").instructions[1].value == value


ALPHABET = st.sampled_from(
    [*list("ab\"'\\# \t\r\n"), '"""', "\xa0", "你", "FROM m", "SYSTEM ", "PARAMETER stop ", "MESSAGE user "]
)


@given(st.lists(ALPHABET, max_size=30).map("".join))
@settings(max_examples=200)
def test_format_then_parse_gives_the_same(text: str) -> None:
    try:
        first = parse("FROM m\n" + text)
    except BadRequest:
        return
    assert parse(first.format()) == first


_WORDS = st.text("abAB \t\n\"'#你🚀\r", max_size=12)


def _is_representable(value: str) -> bool:
    """Without escape sequences, values whose lines end in quotes cannot be written."""
    try:
        return parse(f"FROM m\nSYSTEM {quote(value)}\n").instructions[-1].value == value
    except BadRequest:
        return False


_INSTRUCTIONS = st.lists(
    st.builds(Instruction, st.sampled_from(["license", "template", "system", "adapter", "draft", "renderer"]), _WORDS)
    | st.builds(Instruction, st.just("message"), _WORDS, st.sampled_from(["user", "assistant", "system"]))
    | st.builds(Instruction, st.just("parameter"), _WORDS, st.from_regex(r"[a-z_]{1,8}", fullmatch=True)),
    max_size=6,
)


@given(_INSTRUCTIONS)
@settings(max_examples=80)
def test_formatted_instructions_parse_back(instructions: list[Instruction]) -> None:
    representable = tuple(instruction for instruction in instructions if _is_representable(instruction.value))
    modelfile = Modelfile((Instruction("from", "m"), *representable))
    assert parse(modelfile.format()) == modelfile


@given(st.binary(max_size=60))
@settings(max_examples=100)
def test_arbitrary_bytes_parse_or_raise_bad_request(data: bytes) -> None:
    try:
        parse(data)
    except BadRequest as error:
        assert error.message


def test_request_parts() -> None:
    parts = parse(
        "FROM a\nFROM ./b.gguf\nADAPTER x\nADAPTER y\nTEMPLATE t1\nTEMPLATE t2\nSYSTEM s\nLICENSE l1\nLICENSE l2\n"
        "PARAMETER temperature 0.6\nPARAMETER temperature 0.7\nPARAMETER stop A\nPARAMETER stop B\n"
        "PARAMETER num_ctx 4096\nPARAMETER use_mmap F\nPARAMETER mirostat 1\n"
        "MESSAGE user hi\nMESSAGE assistant ho\nRENDERER r\nPARSER p\nREQUIRES v0.14.0"
    ).request_parts()
    assert parts.from_ == ("a", "./b.gguf")
    assert parts.adapters == ("y",)
    assert (parts.template, parts.system, parts.licenses) == ("t2", "s", ("l1", "l2"))
    assert parts.parameters == {"temperature": 0.7, "stop": ["A", "B"], "num_ctx": 4096, "use_mmap": False}
    assert parts.messages == (Message("user", "hi"), Message("assistant", "ho"))
    assert (parts.renderer, parts.parser, parts.requires) == ("r", "p", "0.14.0")
    assert parts.warnings == ("warning: parameter mirostat is deprecated",)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("num_ctx", "4096", 4096),
        ("seed", "-1", -1),
        ("num_predict", "+7", 7),
        ("temperature", "1", 1.0),
        ("top_p", "0.9", 0.9),
        ("top_p", "0.123456789", 0.12345679),
        ("min_p", "1e-3", 0.001),
        ("use_mmap", "t", True),
        ("use_mmap", "FALSE", False),
        ("stop", "two words", ["two words"]),
    ],
)
def test_typed(name: str, value: str, expected: object) -> None:
    assert typed(name, value) == expected


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("num_ctx", "1.0", "invalid int value [1.0]"),
        ("num_ctx", "x", "invalid int value [x]"),
        ("num_ctx", "9223372036854775808", "invalid int value [9223372036854775808]"),
        ("num_ctx", "1_000", "invalid int value [1_000]"),
        ("num_ctx", "１", "invalid int value [１]"),
        ("temperature", "hot", "invalid float value [hot]"),
        ("temperature", "nan", "invalid float value [nan]"),
        ("temperature", "1e39", "invalid float value [1e39]"),
        ("temperature", "1_0", "invalid float value [1_0]"),
        ("use_mmap", "yes", "invalid bool value [yes]"),
        ("Temperature", "1", "unknown parameter 'Temperature', did you mean 'temperature'?"),
        ("nope", "1", "unknown parameter 'nope'"),
    ],
)
def test_typed_errors(name: str, value: str, error: str) -> None:
    with pytest.raises(BadRequest) as caught:
        parse(f"FROM m\nPARAMETER {name} {value}").request_parts()
    assert caught.value.message == f"{error} (PARAMETER {name}, line 2)"


@pytest.mark.parametrize("version", ["0.14", "1", "1.2.3-rc1+b.5", "v2"])
def test_versions(version: str) -> None:
    assert parse(f"FROM m\nREQUIRES {version}").request_parts().requires == version.removeprefix("v")


@pytest.mark.parametrize("version", ["latest", "01.2", "1.2.3.4", "vv1"])
def test_bad_versions(version: str) -> None:
    with pytest.raises(BadRequest, match="requires must be a valid semver"):
        parse(f"FROM m\nREQUIRES {version}").request_parts()


def test_the_bundled_modelfile_parses() -> None:
    from importlib.resources import files

    parts = parse(files("ollama_nb.sprout").joinpath("Modelfile").read_bytes()).request_parts()
    assert parts.from_ == ("./sprout-q8_0.gguf",)
    assert parts.template.startswith("{{- if .Suffix }}")
