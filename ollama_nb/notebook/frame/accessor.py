"""``df.ollama`` and ``series.ollama``: models over rows, many rows at once, resumable, index and NA kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields as fields_of_class
from difflib import get_close_matches
from typing import Any

import numpy as np
import pandas as pd
from IPython.core.getipython import get_ipython

from ollama_nb.client import question
from ollama_nb.client.question import Overflow
from ollama_nb.client.shape import Fields, shape_of
from ollama_nb.errors import BadRequest
from ollama_nb.notebook.frame import asking, columns, vectors
from ollama_nb.notebook.frame.prompts import texts
from ollama_nb.notebook.frame.run import How, Job, Outcome, Question, run

Rows = pd.DataFrame | pd.Series
Result = pd.Series | pd.DataFrame
_HOW = frozenset(field.name for field in fields_of_class(How))
SCORE = "score"


class Accessor:
    """Models over the rows of a DataFrame or a Series.

    Texts are templates: ``{{column}}`` becomes the row's value (in a Series ``{{value}}``, or its name), every other
    character stays. A row that lacks a value (NA) is not asked about and has no result. Results have the index and the
    order of the rows. Many rows are asked about at once; rows with the same question are asked once where the answer is
    determined (``temperature=0``, a ``seed``). Every answer is recorded: a run that was stopped, or whose kernel died,
    goes on where it was when it is run again.

    Keywords of every method: ``errors`` is ``"raise"`` (the default) or ``"keep"``: then the result is a DataFrame with
    a column ``error``; ``on_overflow="truncate"`` cuts texts that do not fit, instead of an error; ``parallel`` is how
    many rows to ask about at once; ``ledger=False`` records nothing; ``progress=False`` shows none; ``client`` is the
    server to use, as `ollama_nb.connect` returns it.
    Every other keyword is a model option (``temperature``, ``num_ctx``, ``seed``, …) or one of ``think``, ``format``,
    ``choices``, ``regex``, ``grammar``, ``keep_alive``. Unknown ones are errors.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __repr__(self) -> str:
        methods = ", ".join(name for name in vars(Accessor) if not name.startswith("_"))
        return f"models over {len(self._rows):,} rows: {methods}"

    def generate(self, model: str, prompt: str | None = None, *, system: str | None = None, **keywords: Any) -> Result:
        """Answer ``prompt`` for each row: texts. ``system`` says how to behave; it is read once for all rows."""
        how, fields = _read(keywords, "prompt", "system")
        if system is not None:
            fields["system"] = system
        return self._texts("answer", asking.generating(model, fields), texts(self._rows, prompt), how)

    def chat(
        self,
        model: str,
        prompt: str | None = None,
        *,
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        **keywords: Any,
    ) -> Result:
        """The same as a conversation: ``examples`` are pairs of a message and its right answer, read once for all rows.

        The values of a Series may also be lists of messages, each row a conversation to go on with.
        """
        how, fields = _read(keywords, "prompt", "system", "examples")
        before = [*asking.system_message(system), *asking.examples_messages(asking.pairs(examples, "answer"))]
        questions: list[Question]
        if prompt is None and isinstance(self._rows, pd.Series) and any(isinstance(row, list) for row in self._rows):
            one_by_one = zip(self._rows, texts(self._rows, None), strict=True)
            questions = [row if isinstance(row, list) else text for row, text in one_by_one]
        else:
            questions = [*texts(self._rows, prompt)]
        return self._texts("answer", asking.chatting("answered", model, fields, before), questions, how)

    def classify(
        self,
        model: str,
        labels: Iterable[str] | Mapping[str, str],
        *,
        text: str | None = None,
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        **keywords: Any,
    ) -> Result:
        """One of ``labels`` for each row, a categorical; a dict says what each label means.

        The model can answer nothing else, and answers what it holds likeliest (``temperature=0``). ``system`` replaces
        the instructions; ``examples`` are pairs of a text and its label.
        """
        meanings = asking.described(labels)
        pairs = asking.pairs(examples, "label")
        if wrong := [label for _, label in pairs if label not in meanings]:
            raise BadRequest(f'examples: "{wrong[0]}" is none of the labels')
        fixed = {"choices": [*meanings]}
        how, fields = _read({"temperature": 0, "think": False, **keywords, **fixed}, "text", "system", "examples")
        before = [
            *asking.system_message(asking.classifying(meanings) if system is None else system),
            *asking.examples_messages(pairs),
        ]
        job = asking.chatting("classified", model, fields, before, asking.one_of(meanings))

        def result(outcomes: list[Outcome]) -> Result:
            return columns.label_column(outcomes, self._rows.index, "label", [*meanings])

        return self._done(job, [*texts(self._rows, text)], how, result)

    def extract(
        self,
        model: str,
        fields: type | Fields,
        *,
        text: str | None = None,
        system: str | None = None,
        examples: Iterable[tuple[str, Any]] = (),
        **keywords: Any,
    ) -> pd.DataFrame:
        """Named fields of each row's text: a DataFrame with a typed column for each.

        ``fields``: a Pydantic model, dataclass or TypedDict, or a dict of names with a type, a list of choices, a
        description, or a pair of type and description. ``examples`` are pairs of a text and a value or dict.
        """
        shape = shape_of(fields)
        instructions = asking.extracting(shape.schema) if system is None else system
        pairs = [(asked, asking.as_json(found, shape)) for asked, found in asking.pairs(examples, "fields")]
        given = {"temperature": 0, "num_predict": asking.LONGEST_RECORD, "think": False, **keywords}
        how, request = _read({**given, "format": shape.schema}, "text", "system", "examples")
        before = [*asking.system_message(instructions), *asking.examples_messages(pairs)]
        job = asking.chatting("extracted", model, request, before, asking.checked(shape))

        def result(outcomes: list[Outcome]) -> Result:
            values = [shape.parse(found["value"]) if isinstance(found, dict) else None for found in outcomes]
            records = [None if value is None else asking.plain(value) for value in values]
            return columns.record_columns(records, self._rows.index, shape.schema)

        found = self._done(job, [*texts(self._rows, text)], how, result)
        assert isinstance(found, pd.DataFrame)
        return found

    def embed(self, model: str, *, text: str | None = None, dimensions: int = 0, **keywords: Any) -> pd.DataFrame:
        """A unit vector for each row: a DataFrame of float32, a column for each dimension."""
        how, fields = _read(keywords, "text", "dimensions")
        if dimensions:
            fields["dimensions"] = dimensions

        def result(outcomes: list[Outcome]) -> Result:
            return pd.DataFrame(vectors.matrix(outcomes), index=self._rows.index)

        found = self._done(vectors.embedding(model, fields), [*texts(self._rows, text)], how, result)
        assert isinstance(found, pd.DataFrame)
        return found

    def similar(self, model: str, query: str, k: int = 5, *, text: str | None = None, **keywords: Any) -> pd.DataFrame:
        """The ``k`` rows nearest in meaning to ``query``, best first, with a column ``score`` (cosine, -1 to 1).

        ``model`` makes the vectors; those of the rows are recorded, so the next query costs one vector only.
        """
        how, fields = _read(self._ranking(keywords, k), "text", "k")
        sources: list[Question] = [query, *texts(self._rows, text)]
        labels = ["query", *self._rows.index.tolist()]
        outcomes = run(vectors.embedding(model, fields, whole=True), sources, how, labels, _forget)
        matrix = vectors.matrix(outcomes).astype(np.float64)
        return self._best((matrix[1:] @ matrix[0]).tolist(), k)

    def rerank(
        self, model: str, query: str, k: int | None = None, *, text: str | None = None, **keywords: Any
    ) -> pd.DataFrame:
        """The rows (the best ``k`` of them) by how well they answer ``query``, with a column ``score``.

        A reranking model reads query and row together, score 0 to 1; from any other model it is the cosine.
        """
        how, fields = _read(self._ranking(keywords, k), "text", "k")
        fields.pop("truncate")  # documents are always cut to what fits
        job = vectors.ranking(model, query, fields)
        outcomes = run(job, [*texts(self._rows, text)], how, self._rows.index.tolist(), _forget)
        return self._best(vectors.scores(outcomes), k)

    def _texts(self, name: str, job: Job, questions: Iterable[Question], how: How) -> Result:
        def result(outcomes: list[Outcome]) -> Result:
            return columns.text_column(outcomes, self._rows.index, name)

        return self._done(job, [*questions], how, result)

    def _done(self, job: Job, questions: list[Question], how: How, result: Callable[[list[Outcome]], Result]) -> Result:
        outcomes = run(job, questions, how, self._rows.index.tolist(), lambda so_far: _keep(result(so_far)))
        return columns.with_errors(result(outcomes), outcomes) if how.errors == "keep" else result(outcomes)

    def _ranking(self, keywords: Mapping[str, Any], k: int | None) -> Mapping[str, Any]:
        """Keywords of a ranking. Raises BadRequest before anything is computed for what would fail afterwards."""
        if "errors" in keywords:
            raise BadRequest("a ranking needs all rows, so it takes no `errors`; `on_overflow` may cut long texts")
        if k is not None and (not isinstance(k, int | np.integer) or k < 1):
            raise BadRequest(f"k is how many rows: a number of at least 1, not {k!r}")
        names = [self._rows.name] if isinstance(self._rows, pd.Series) else [*self._rows.columns]
        if SCORE in names:
            raise BadRequest(f'there is a column "{SCORE}" already: rename it first')
        return keywords

    def _best(self, scores: list[float], k: int | None) -> pd.DataFrame:
        """Rows with a score, best first; rows with the same score keep their order."""
        frame = self._rows.to_frame() if isinstance(self._rows, pd.Series) else self._rows
        order = [at for at in np.argsort(-np.asarray(scores), kind="stable") if not np.isnan(scores[at])][:k]
        return frame.iloc[order].assign(**{SCORE: [scores[at] for at in order]})


def accessor(rows: Rows) -> Accessor:
    """What pandas calls for ``.ollama``."""
    return Accessor(rows)


def _read(keywords: Mapping[str, Any], *own: str) -> tuple[How, dict[str, Any]]:
    """Keywords → how to run, and the request's fields. Raises BadRequest for unknown ones.

    ``own``: what the method itself takes, to name it where something near it was written.
    """
    known = {*own, *_HOW, "on_overflow", *question.KEYWORDS}
    for name in keywords:
        other = {"prompt": "text", "text": "prompt"}.get(name, "")
        near = other if other in own else next(iter(get_close_matches(name, known, n=1)), "")
        if near and name not in known:
            raise BadRequest(f'unknown keyword "{name}", did you mean "{near}"?')
    how = How(**{name: given for name, given in keywords.items() if name in _HOW})
    overflow: Overflow = keywords.get("on_overflow", "error")
    rest = {name: given for name, given in keywords.items() if name not in _HOW and name != "on_overflow"}
    return how, {**question.request_fields(rest), "truncate": question.may_truncate(overflow)}


def _keep(partial: Result) -> None:
    """What was done before the user stopped the run, as magics keep it."""
    shell = get_ipython()
    if shell is not None:
        shell.user_ns["_ollama"] = partial


def _forget(so_far: list[Outcome]) -> None:
    """Half a ranking is of no use; what was computed is in the ledger."""
