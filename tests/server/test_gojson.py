"""JSON bodies are read as Go reads them; times are written as Go writes them."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ollama_nb.api.encode import go_quote
from ollama_nb.errors import BadRequest
from ollama_nb.server import limits
from ollama_nb.server.dialects import gojson
from ollama_nb.server.dialects.gojson import Fields


@pytest.mark.parametrize(
    ("body", "value"),
    [
        (b'{"a":1}', {"a": 1}),
        (b' \r\n\t{"a":1} and more', {"a": 1}),
        (b'{"a":1}{"a":2}', {"a": 1}),
        (b'{"a":1,"a":2}', {"a": 2}),
        (b"null", None),
        (b'"caf\xe9"', "caf\ufffd"),
        (b'"\\ud83d\\ude00"', "😀"),
        (b'"\\ud800"', "\ufffd"),
        (b'{"k\\ud800":["\\udfff"]}', {"k\ufffd": ["\ufffd"]}),
        ("你好".join('""').encode(), "你好"),
        (b"1.5", 1.5),
        (b"[" * 64 + b"]" * 64, json.loads("[" * 64 + "]" * 64)),
    ],
)
def test_reads(body: bytes, value: Any) -> None:
    assert gojson.decode(body) == value


@pytest.mark.parametrize(
    ("body", "text"),
    [
        (b"", "missing request body"),
        (b" \n", "missing request body"),
        (b"x", "invalid character 'x' looking for beginning of value"),
        (b"'", r"invalid character '\'' looking for beginning of value"),
        (b'{"a":', "unexpected EOF"),
        (b'{"a":"x', "unexpected EOF"),
        (b"{", "unexpected EOF"),
        (b"tru", "unexpected EOF"),
        (b'{"a" 1}', "invalid character '1' after object key"),
        (b'{"a":1,}', "invalid character '}' looking for beginning of object key string"),
        (b"{1:2}", "invalid character '1' looking for beginning of object key string"),
        (b"[1,]", "invalid character ']' looking for beginning of value"),
        (b'{"a":1 "b"}', "invalid character '\"' after object key:value pair"),
        (b'{"a":{"b":"[{"} 1}', "invalid character '1' after object key:value pair"),
        (b"[1 2]", "invalid character '2' after array element"),
        (b'{"a":"\n"}', r"invalid character '\n' in string literal"),
        (b'{"a":"\\q"}', "invalid character 'q' in string escape code"),
        (b'{"a":NaN}', "invalid character 'N' looking for beginning of value"),
        (b'{"a":Infinity}', "invalid character 'I' looking for beginning of value"),
        (b'{"a":-Infinity}', "invalid character 'I' in numeric literal"),
        (b'{"a":tru}', "invalid character '}' in literal true (expecting 'e')"),
        (b"[nope]", "invalid character 'o' in literal null (expecting 'u')"),
        (b'{"a":nul', "unexpected EOF"),
        (b'{"a":-}', "invalid character '}' in numeric literal"),
        (b'{"a":-', "unexpected EOF"),
        (b'{"a":1.}', "invalid character '}' after decimal point in numeric literal"),
        (b'{"a":1.', "unexpected EOF"),
        (b'{"a":1e+}', "invalid character '}' in exponent of numeric literal"),
        (b"[1 -2]", "invalid character '-' after array element"),
        (b'{"a" t}', "invalid character 't' after object key"),
        (b"\xef\xbb\xbf{}", "invalid character 'ï' looking for beginning of value"),
        (b'{"a":1e999}', "json: cannot unmarshal number 1e999 into Go value of type float64"),
        (b"[" * 65 + b"]" * 65, "request body is nested deeper than 64 levels"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "request body is nested deeper than 64 levels"),
        (b"[" * limits.MAX_CONTAINERS, "request body is nested deeper than 64 levels"),
        (b"9" * 5000, "json: cannot unmarshal number 99999999999999999999 into Go value of type float64"),
        (b"[" + b"1," * limits.MAX_VALUES + b"1]", "request body holds more than 2000000 values"),
        (b"[" + b"{}," * limits.MAX_CONTAINERS + b"1]", "request body holds more than 100000 objects and arrays"),
        (b'{"a":1' + b',"a":1' * limits.MAX_MEMBERS + b"}", "request body holds more than 200000 members of objects"),
        (b"[" + b'["\\"{"],' * limits.MAX_CONTAINERS + b"1]", "request body holds more than 100000 objects and arrays"),
    ],
    ids=lambda value: repr(value[:20]),
)
def test_refuses(body: bytes, text: str) -> None:
    """S30: malformed, endless, deep and huge JSON."""
    with pytest.raises(BadRequest) as error:
        gojson.decode(body)
    assert error.value.message == text


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@settings(max_examples=200)
@given(JSON)
def test_agrees_with_python_on_json(value: Any) -> None:
    assert gojson.decode(json.dumps(value).encode()) == value


@settings(max_examples=200)
@given(st.binary() | st.text(alphabet='{}[]":,\\ue1.-+truefalsn \n').map(str.encode))
def test_anything_else_is_a_bad_request(body: bytes) -> None:
    """S30: any bytes are read or refused."""
    try:
        gojson.decode(body)
    except BadRequest as error:
        assert error.message


def test_keys_match_in_any_case_and_the_last_one_wins() -> None:
    def model(body: bytes) -> str:
        return Fields(gojson.decode(body), "ChatRequest").text("model")

    assert model(b'{"MODEL":"a"}') == "a"
    assert model(b'{"Model":"a","model":"b"}') == "b"
    assert model(b'{"model":"a","Model":"b"}') == "b"
    assert model(b'{"model":"a","Model":"b","model":"c"}') == "c"
    assert model(b'{"other":[1,2,{}]}') == ""
    assert model(b"null") == ""


@pytest.mark.parametrize(
    ("body", "read", "text"),
    [
        ('{"m":1}', lambda f: f.text("m"), "cannot unmarshal number into Go struct field S.m of type string"),
        ('{"m":[]}', lambda f: f.text("m"), "cannot unmarshal array into Go struct field S.m of type string"),
        ('{"m":"1"}', lambda f: f.flag("m"), "cannot unmarshal string into Go struct field S.m of type bool"),
        ('{"m":1}', lambda f: f.flag("m"), "cannot unmarshal number into Go struct field S.m of type bool"),
        ('{"m":1.5}', lambda f: f.whole("m"), "cannot unmarshal number 1.5 into Go struct field S.m of type int"),
        ('{"m":true}', lambda f: f.whole("m"), "cannot unmarshal bool into Go struct field S.m of type int"),
        ('{"m":1}', lambda f: f.object("m"),
         "cannot unmarshal number into Go struct field S.m of type map[string]interface {}"),
        ('{"m":{}}', lambda f: f.texts("m"), "cannot unmarshal object into Go struct field S.m of type []string"),
        ('{"m":[1]}', lambda f: f.texts("m"), "cannot unmarshal number into Go struct field S.m of type string"),
        ('{"m":[{"n":{}}]}', lambda f: [m.text("n") for m in f.structs("m", "api.M")],
         "cannot unmarshal object into Go struct field S.m.n of type string"),
        ('{"m":["n"]}', lambda f: f.structs("m", "api.M"),
         "cannot unmarshal string into Go struct field S.m of type api.M"),
        ('{"m":"n"}', lambda f: f.structs("m", "api.M"),
         "cannot unmarshal string into Go struct field S.m of type []api.M"),
        ('{"m":{"a":1}}', lambda f: f.text_map("m"), "cannot unmarshal number into Go struct field S.m of type string"),
        ('{"m":[1]}', lambda f: f.blobs("m"),
         "cannot unmarshal number into Go struct field S.m of type api.ImageData"),
        ("[1]", lambda f: f, "cannot unmarshal array into Go value of type api.S"),
        ('"x"', lambda f: f, "cannot unmarshal string into Go value of type api.S"),
    ],
)  # fmt: skip
def test_wrong_types_are_named(body: str, read: Any, text: str) -> None:
    with pytest.raises(BadRequest) as error:
        read(Fields(json.loads(body), "S"))
    assert error.value.message == f"json: {text}"


def test_null_counts_as_missing() -> None:
    fields = Fields(dict.fromkeys("abcdefgh"), "S")
    assert fields.text("a") == "" and fields.flag("b") is None and fields.whole("c") == 0
    assert fields.object("d") == {} and fields.texts("e") == () and fields.blobs("f") == ()
    assert fields.wholes("g") is None and fields.structs("h", "T") == [] and "a" not in fields
    assert Fields({"a": [None, "x"]}, "S").texts("a") == ("", "x")


@pytest.mark.parametrize(
    ("text", "found"), [("aGk=", b"hi"), ("aG\r\nk=", b"hi"), ("", b""), ("/+8=", b"\xff\xef")]
)  # fmt: skip
def test_base64(text: str, found: bytes) -> None:
    assert Fields({"images": [text]}, "S").blobs("images") == (found,)


@pytest.mark.parametrize(
    ("text", "byte"), [("aGk", 3), ("a-k=", 1), ("data:image/png;base64,aGk=", 4), ("aGk=x", 3), ("é", 0)]
)  # fmt: skip
def test_bad_base64_names_the_byte(text: str, byte: int) -> None:
    with pytest.raises(BadRequest, match=f"illegal base64 data at input byte {byte}"):
        Fields({"images": [text]}, "S").blobs("images")


@pytest.mark.parametrize(
    ("text", "quoted"),
    [('a"b', r'"a\"b"'), ("a\\b", r'"a\\b"'), ("\n\t\x01", r'"\n\t\x01"'), ("你好", '"你好"'), ("\u2028", r'"\u2028"')],
)
def test_go_quotes(text: str, quoted: str) -> None:
    assert go_quote(text) == quoted


@pytest.mark.parametrize(
    ("unix_ns", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_785_578_400_000_000_000, "2026-08-01T10:00:00Z"),
        (1_785_578_400_100_000_000, "2026-08-01T10:00:00.1Z"),
        (1_785_578_400_000_000_001, "2026-08-01T10:00:00.000000001Z"),
    ],
)
def test_utc(unix_ns: int, text: str) -> None:
    assert gojson.utc(unix_ns) == text


def test_local_time_has_the_offset_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    def at(zone: str) -> str:
        monkeypatch.setenv("TZ", zone)
        time.tzset()
        return gojson.local(1_785_578_400.25)

    try:
        assert at("UTC") == "2026-08-01T10:00:00.25Z"
        assert at("Asia/Shanghai") == "2026-08-01T18:00:00.25+08:00"
        assert at("NST03:30") == "2026-08-01T06:30:00.25-03:30"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_forever_is_292_years() -> None:
    assert gojson.nanoseconds(math.inf) == (1 << 63) - 1
    assert gojson.nanoseconds(0.0015) == 1_500_000
    years = int(gojson.local(math.inf)[:4]) - int(gojson.utc_now()[:4])
    assert 292 <= years <= 293
