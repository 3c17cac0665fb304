"""``df.ollama`` with a scripted server: the requests, and the results by row."""

from __future__ import annotations

import datetime
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from support.fake_servers import MODEL, Answer, EchoServer, error, score

import ollama_nb
from ollama_nb.errors import BadRequest, ContextOverflow, ModelNotFound, NotFound, OllamaError

TOO_LONG = "the prompt is longer than the context length currently available to the model"


def test_texts_come_back_in_their_rows(echo_server: EchoServer) -> None:
    frame = pd.DataFrame({"a": ["x", None, "z"], "n": [1, 2, 3]}, index=pd.Index([10, 20, 20], name="id"))
    found = frame.ollama.generate(MODEL, "{{a}}-{{n}}", system="Be short.", temperature=0)
    expected = pd.Series(["X-1", pd.NA, "Z-3"], index=frame.index, dtype="string", name="answer")
    pd.testing.assert_series_equal(found, expected)
    (asked,) = (body for body in echo_server.asked("POST /api/generate") if body["prompt"] == "x-1")
    assert asked == {
        "model": MODEL, "prompt": "x-1", "stream": False, "system": "Be short.", "options": {"temperature": 0},
        "truncate": False,
    }  # fmt: skip


def test_the_same_question_is_asked_once_where_its_answer_is_determined(echo_server: EchoServer) -> None:
    words = pd.Series(["a", "b", "a", "a"])
    assert words.ollama.generate(MODEL, seed=7).tolist() == ["A", "B", "A", "A"]
    assert echo_server.questions == {"a": 1, "b": 1}
    assert words.ollama.generate(MODEL).tolist() == ["A", "B", "A", "A"]
    assert echo_server.questions == {"a": 4, "b": 2}


def test_determined_answers_are_remembered_also_for_other_tables(echo_server: EchoServer) -> None:
    pd.Series(["a", "b"]).ollama.generate(MODEL, temperature=0)
    assert pd.Series(["b", "c"]).ollama.generate(MODEL, temperature=0).tolist() == ["B", "C"]
    assert echo_server.questions == {"a": 1, "b": 1, "c": 1}
    pd.Series(["a"]).ollama.generate(MODEL, temperature=0, num_predict=9)
    assert echo_server.questions["a"] == 2
    echo_server.digest = "f" * 64  # another model of the same name
    pd.Series(["a"]).ollama.generate(MODEL, temperature=0)
    assert echo_server.questions["a"] == 3
    pd.Series(["a"]).ollama.generate(MODEL, temperature=0, ledger=False)
    assert echo_server.questions["a"] == 4


def test_other_answers_are_sampled_again_after_a_finished_run(echo_server: EchoServer) -> None:
    for times in (1, 2):
        pd.Series(["a"]).ollama.generate(MODEL)
        assert echo_server.questions["a"] == times


def test_all_slots_are_busy_at_once(echo_server: EchoServer) -> None:
    echo_server.slots = 8
    together = threading.Barrier(8)
    echo_server.before = lambda text: together.wait(60)
    found = pd.Series([*"abcdefgh"]).ollama.generate(MODEL)
    assert found.tolist() == [*"ABCDEFGH"]


def test_parallel_sets_the_number_of_requests_at_once(echo_server: EchoServer) -> None:
    running, most, lock = 0, 0, threading.Lock()

    def count(text: str) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        threading.Event().wait(0.01)
        with lock:
            running -= 1

    echo_server.before = count
    pd.Series([*"abcdefgh"]).ollama.generate(MODEL, parallel=1)
    assert most == 1


def test_a_row_s_error_stops_the_run_and_names_the_row(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: error(400, TOO_LONG, "context_overflow") if text == "bad" else text.upper()
    words = pd.Series(["a", "bad", "c"], index=["x", "y", "z"])
    with pytest.raises(ContextOverflow, match=r"row 'y': the prompt is longer.*`errors=\"keep\"`"):
        words.ollama.generate(MODEL, parallel=1)


def test_errors_can_be_kept(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: error(400, "no") if text == "bad" else text.upper()
    words = pd.Series(["a", "bad", None, "\ud800"], index=["x", "y", "z", "w"])
    found = words.ollama.generate(MODEL, errors="keep")
    assert found["answer"].isna().tolist() == [False, True, True, True]
    assert found.loc["y", "error"] == "no"
    assert "cannot be sent" in found.loc["w", "error"]
    assert found["error"].isna().tolist() == [True, False, True, False]
    assert [*found.columns] == ["answer", "error"]
    assert found["error"].dtype == "string"


def test_rows_that_failed_are_asked_again_the_next_time(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: error(400, "no") if text == "bad" else text.upper()
    words = pd.Series(["a", "bad"])
    words.ollama.generate(MODEL, errors="keep")
    echo_server.say = str.upper
    assert words.ollama.generate(MODEL).tolist() == ["A", "BAD"]
    assert echo_server.questions == {"a": 1, "bad": 2}


def test_errors_that_concern_all_rows_are_always_raised(echo_server: EchoServer) -> None:
    with pytest.raises(NotFound, match="model not found"):
        pd.Series(["a"]).ollama.generate("nobody", errors="keep")
    echo_server.say = lambda text: error(404, "gone")
    with pytest.raises(NotFound, match="gone"):
        pd.Series(["a", "b"]).ollama.generate(MODEL, errors="keep")
    assert not issubclass(NotFound, ModelNotFound)


def test_a_busy_server_is_asked_again(echo_server: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_nb.notebook.frame.run.PAUSES", (0.01, 0.01, 0.01, 0.01))
    for replies in ([error(503, "server busy")] * 4 + ["done"], [error(500, "runner died"), "done"]):
        echo_server.say = lambda text, replies=replies: replies.pop(0)  # type: ignore[misc]
        assert pd.Series(["a"]).ollama.generate(MODEL).tolist() == ["done"]


def test_a_server_that_stays_broken_is_an_error(echo_server: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ollama_nb.notebook.frame.run.PAUSES", (0.01, 0.01, 0.01, 0.01))
    echo_server.say = lambda text: error(500, "runner died")
    with pytest.raises(OllamaError, match="row 0: runner died"):
        pd.Series(["a"]).ollama.generate(MODEL)
    assert echo_server.questions["a"] == 2


def test_texts_that_do_not_fit_are_cut_with_on_overflow(echo_server: EchoServer) -> None:
    pd.Series(["a"]).ollama.generate(MODEL, on_overflow="truncate")
    assert echo_server.asked("POST /api/generate")[-1]["truncate"] is True


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"temprature": 0}, 'did you mean "temperature"'),
        ({"errors": "ignore"}, 'errors must be "raise" or "keep"'),
        ({"on_overflow": "cut"}, "on_overflow must be"),
        ({"parallel": -1}, "parallel must be a number between 1 and 64, not -1"),
        ({"parallel": 0.5}, "parallel must be a number between 1 and 64, not 0.5"),
        ({"paralel": 2}, 'unknown keyword "paralel", did you mean "parallel"'),
        ({"sistem": "x"}, 'unknown keyword "sistem", did you mean "system"'),
        ({"text": "{{value}}"}, 'unknown keyword "text", did you mean "prompt"'),
        ({"wholly": "unknown"}, 'unknown option "wholly"'),
        ({"choices": "abc"}, "choices must be a list of strings, not 'abc'"),
    ],
)
def test_unknown_keywords_are_refused(echo_server: EchoServer, keywords: dict[str, Any], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        pd.Series(["a"]).ollama.generate(MODEL, **keywords)
    assert echo_server.asked_times == 0


def test_no_rows_need_no_server(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "127.0.0.1:9")
    client = ollama_nb.Client("http://127.0.0.1:9")
    assert pd.Series([], dtype="object").ollama.generate(MODEL, client=client).tolist() == []
    assert pd.Series([None, None]).ollama.generate(MODEL, client=client).isna().all()


@pytest.mark.parametrize("kind", [ollama_nb.Client, lambda url: ollama_nb.Ollama(ollama_nb.Client(url))])
def test_the_server_may_be_given(home: Path, kind: Any) -> None:
    with EchoServer() as running:
        assert pd.Series(["a"]).ollama.generate(MODEL, client=kind(running.url)).tolist() == ["A"]


def test_the_repr_of_an_accessor_lists_its_methods() -> None:
    assert repr(pd.Series([1, 2]).ollama) == (
        "models over 2 rows: generate, chat, classify, extract, embed, similar, rerank"
    )


# conversations


def test_system_message_and_examples_come_first(echo_server: EchoServer) -> None:
    pd.Series(["hi"]).ollama.chat(MODEL, "{{value}}!", system="Be short.", examples=[("a", "b")])
    assert echo_server.asked("POST /api/chat")[0]["messages"] == [
        {"role": "system", "content": "Be short."},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "hi!"},
    ]


def test_a_row_may_be_a_conversation(echo_server: EchoServer) -> None:
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert pd.Series([talk, None, "d", 5]).ollama.chat(MODEL).fillna("-").tolist() == ["C", "-", "D", "5"]
    assert talk in [asked["messages"] for asked in echo_server.asked("POST /api/chat")]


# labels


def test_labels_are_a_categorical_and_constrain_the_model(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: "good" if "love" in text else "bad"
    found = pd.Series(["love", None, "hate"]).ollama.classify(MODEL, ["good", "bad", "无"])
    expected = pd.Series(["good", None, "bad"], dtype=pd.CategoricalDtype(["good", "bad", "无"]), name="label")
    pd.testing.assert_series_equal(found, expected)
    asked = echo_server.asked("POST /api/chat")[0]
    assert (asked["choices"], asked["options"], asked["think"]) == (["good", "bad", "无"], {"temperature": 0}, False)
    assert asked["messages"][0]["content"].endswith("one of these labels: good, bad, 无.")


def test_labels_may_have_meanings_and_examples(echo_server: EchoServer) -> None:
    labels = {"good": "praise", "bad": ""}
    echo_server.say = lambda text: "good"
    pd.Series(["x"]).ollama.classify(MODEL, labels, examples=[("y", "bad")], text="<{{value}}>")
    messages = echo_server.asked("POST /api/chat")[0]["messages"]
    assert messages[0]["content"].endswith("\n- good: praise\n- bad")
    assert [message["content"] for message in messages[1:]] == ["y", "bad", "<x>"]


def test_an_answer_that_is_not_a_label_is_an_error(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: "I think it is good."
    with pytest.raises(OllamaError, match=r'row 0: "I think it is good\." is not one of the labels'):
        pd.Series(["x"]).ollama.classify(MODEL, ["good", "bad"])


@pytest.mark.parametrize("labels", ["good", ["good"], ["good", ""], [1, 2]])
def test_labels_must_be_texts(echo_server: EchoServer, labels: Any) -> None:
    with pytest.raises(BadRequest, match="labels"):
        pd.Series(["x"]).ollama.classify(MODEL, labels)
    with pytest.raises(BadRequest, match='examples: "c" is not one of the labels'):
        pd.Series(["x"]).ollama.classify(MODEL, ["a", "b"], examples=[("x", "c")])
    with pytest.raises(BadRequest, match='unknown keyword "prompt", did you mean "text"'):
        pd.Series(["x"]).ollama.classify(MODEL, ["a", "b"], prompt="{{value}}")


@pytest.mark.parametrize("examples", [[("a",)], ["ab"], [(1, "a")], [("a", "b", "c")]])
def test_examples_are_pairs(echo_server: EchoServer, examples: Any) -> None:
    words = pd.Series(["x"])
    for ask in (lambda: words.ollama.classify(MODEL, ["a", "b"], examples=examples),
                lambda: words.ollama.chat(MODEL, examples=examples),
                lambda: words.ollama.extract(MODEL, {"a": str}, examples=examples)):  # fmt: skip
        with pytest.raises(BadRequest, match="examples are pairs of a text and its"):
            ask()


def test_examples_may_be_a_dict(echo_server: EchoServer) -> None:
    pd.Series(["x"]).ollama.classify(MODEL, ["X", "Y"], examples={"u": "X"})
    assert [message["content"] for message in echo_server.asked("POST /api/chat")[0]["messages"]][1:] == ["u", "X", "x"]


# fields


@dataclass
class Sale:
    item: str
    count: int
    price: float | None
    paid: bool
    when: datetime.date | None
    kind: Literal["new", "used"]
    tags: list[str]


SALE = {
    "item": "自行车", "count": 2, "price": 9.5, "paid": True, "when": "2024-02-29", "kind": "used", "tags": ["a"],
}  # fmt: skip


def test_fields_are_typed_columns(echo_server: EchoServer) -> None:
    nothing = {**SALE, "price": None, "when": None}
    echo_server.say = lambda text: json.dumps(SALE if text == "one" else nothing)
    found = pd.Series(["one", "two", None], index=["x", "y", "z"]).ollama.extract(MODEL, Sale)
    assert [*found.columns] == [*SALE]
    assert found.dtypes.astype(str).to_dict() | {"when": "datetime", "item": "string"} == {
        "item": "string", "count": "Int64", "price": "Float64", "paid": "boolean", "when": "datetime",
        "kind": "category", "tags": "object",
    }  # fmt: skip
    assert found["item"].dtype == pd.StringDtype()
    assert found["when"].dtype.kind == "M"
    assert found.loc["x"].tolist() == ["自行车", 2, 9.5, True, pd.Timestamp("2024-02-29"), "used", ["a"]]
    assert found.loc["y", ["price", "when"]].isna().all()
    assert found.loc["z"].isna().all()
    asked = echo_server.asked("POST /api/chat")[0]
    assert asked["format"]["required"] == [*SALE]
    assert asked["options"] == {"temperature": 0, "num_predict": 1024}
    assert asked["messages"][0]["content"].splitlines()[1:] == [
        "- item (string)", "- count (integer)", "- price (number or null)", "- paid (boolean)",
        "- when (date or null)", "- kind (one of new, used)", "- tags (list of strings)",
    ]  # fmt: skip


class Person(BaseModel):
    name: str
    age: int


def test_fields_of_pydantic_and_of_dicts(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: '{"name": "Ann", "age": 7}'
    by_model = pd.Series(["x"]).ollama.extract(MODEL, Person, examples=[("Bo, 8", Person(name="Bo", age=8))])
    by_dict = pd.Series(["x"]).ollama.extract(MODEL, {"name": "first name", "age": (int, "in years")})
    assert by_model.loc[0].tolist() == by_dict.loc[0].tolist() == ["Ann", 7]
    first, second = (asked["messages"] for asked in echo_server.asked("POST /api/chat"))
    assert first[2] == {"role": "assistant", "content": '{"name": "Bo", "age": 8}'}
    assert second[0]["content"].endswith("- name (string): first name\n- age (integer): in years")


def test_a_record_that_was_cut_off_is_that_row_s_error(echo_server: EchoServer) -> None:
    message = {"role": "assistant", "content": '{"name": "An'}
    cut = Answer(200, [json.dumps({"message": message, "done": True, "done_reason": "length"}).encode()])
    echo_server.say = lambda text: cut if text == "long" else '{"name": "Ann", "age": 7}'
    found = pd.Series(["long", "short"]).ollama.extract(MODEL, Person, errors="keep")
    assert found["age"].isna().tolist() == [True, False]
    assert "cut off" in found.loc[0, "error"]


def test_fields_need_names_and_examples_their_shape(echo_server: EchoServer) -> None:
    with pytest.raises(BadRequest, match="fields need names"):
        pd.Series(["x"]).ollama.extract(MODEL, int)
    with pytest.raises(BadRequest, match="examples: the answer does not have the wanted shape"):
        pd.Series(["x"]).ollama.extract(MODEL, {"age": int}, examples=[("x", {"age": "old"})])


# vectors


def test_vectors_are_columns(echo_server: EchoServer) -> None:
    found = pd.Series(["ab", None, "ba"], index=["x", "y", "z"]).ollama.embed(MODEL)
    assert (found.shape, set(found.dtypes.astype(str))) == ((3, 8), {"float32"})
    assert found.loc["y"].isna().all()
    assert np.allclose(found.loc["x"], found.loc["z"])
    assert np.allclose(np.linalg.norm(found.loc["x"]), 1)


def test_a_failing_input_does_not_affect_others(echo_server: EchoServer) -> None:
    echo_server.say = lambda text: error(400, "the input length exceeds the context length") if text == "bad" else text
    words = pd.Series([f"w{number}" for number in range(40)] + ["bad"])
    found = words.ollama.embed(MODEL, errors="keep")
    assert found["error"].notna().tolist() == [False] * 40 + [True]
    assert found[0].isna().tolist() == [False] * 40 + [True]


def test_similar(echo_server: EchoServer) -> None:
    frame = pd.DataFrame({"word": ["zzz", "abc", None, "cab"], "n": [1, 2, 3, 4]}, index=[*"pqrs"])
    found = frame.ollama.similar(MODEL, "bca", 2, text="{{word}}")
    assert found.index.tolist() == ["q", "s"]
    assert found["score"].round(6).tolist() == [1.0, 1.0]
    assert [*found.columns] == ["word", "n", "score"]
    frame.ollama.similar(MODEL, "zz", text="{{word}}")
    assert echo_server.questions == {"bca": 1, "zzz": 1, "abc": 1, "cab": 1, "zz": 1}


def test_rerank(echo_server: EchoServer) -> None:
    words = pd.Series(["aaaa", "a", None, "aaa"], name="word")
    found = words.ollama.rerank(MODEL, "?")
    assert found.index.tolist() == [1, 3, 0]
    assert found["score"].tolist() == [score("a"), score("aaa"), score("aaaa")]
    assert words.ollama.rerank(MODEL, "?", 1).index.tolist() == [1]
    with pytest.raises(BadRequest, match='already a column "score"'):
        words.rename("score").ollama.rerank(MODEL, "?")
    asked = echo_server.asked_times
    for k in (0, 1.5, "2"):
        with pytest.raises(BadRequest, match="k is the number of rows to return, at least 1"):
            words.ollama.similar(MODEL, "?", k)
    with pytest.raises(BadRequest, match='already a column "score"'):
        words.to_frame("score").ollama.similar(MODEL, "?", text="{{score}}")
    with pytest.raises(BadRequest, match="a ranking needs all rows, so it takes no `errors`"):
        words.ollama.rerank(MODEL, "?", errors="keep")
    assert echo_server.asked_times == asked


# whatever the index

LABELS = st.one_of(st.integers(-5, 5), st.text(max_size=3), st.none(), st.dates().map(pd.Timestamp))
VALUES = st.one_of(st.none(), st.text("abc ñ中", min_size=1, max_size=4))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(LABELS, LABELS, VALUES), max_size=12), multi=st.booleans(), determined=st.booleans())
def test_index_order_and_missing_values_stay(
    echo_server: EchoServer, rows: list[tuple[Any, Any, str | None]], multi: bool, determined: bool
) -> None:
    first, second, values = ([row[at] for row in rows] for at in range(3))
    index = pd.MultiIndex.from_arrays([first, second]) if multi else pd.Index(first, dtype="object")
    series = pd.Series(values, index=index, dtype="object")
    keywords = {"temperature": 0} if determined else {}
    found = series.ollama.generate(MODEL, **keywords)
    assert found.index is index or found.index.equals(index)
    assert [None if pd.isna(answer) else answer for answer in found] == [value and value.upper() for value in values]
    labels = series.ollama.embed(MODEL)
    assert labels.index.equals(index)
    if any(values):
        assert labels[0].isna().tolist() == [value is None for value in values]
