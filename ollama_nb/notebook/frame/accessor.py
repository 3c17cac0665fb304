"""``df.ollama`` and ``series.ollama``: run models over rows, in parallel and resumable, preserving index and NA."""

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
from ollama_nb.notebook.frame import columns, jobs
from ollama_nb.notebook.frame.run import FrameOptions, Job, Outcome, RowInput, run

Rows = pd.DataFrame | pd.Series
Result = pd.Series | pd.DataFrame
_FRAME_OPTIONS = frozenset(field.name for field in fields_of_class(FrameOptions))
SCORE = "score"
"""The column that a ranking adds."""


class Accessor:
    """Runs models over the rows of a DataFrame or a Series.

    Texts are templates: ``{{column}}`` becomes the row's value (in a Series ``{{value}}``, or its name); every other
    character stays as it is. No request is sent for a row with a missing value (NA), and its result is NA. Results
    have the index and the order of the rows. Requests run in parallel. Rows with the same question share one request
    if the answer is deterministic (``temperature=0`` or a ``seed``). Every answer is recorded: an interrupted run, also
    one whose kernel died, resumes when it is started again.

    Keywords of every method:

    - ``errors``: ``"raise"`` (default), or ``"keep"`` for a DataFrame with a column ``error``.
    - ``on_overflow``: ``"error"`` (default), or ``"truncate"`` to cut texts that do not fit into the context;
      one warning names the rows whose text was cut before it was embedded or ranked.
    - ``parallel``: the number of requests at once.
    - ``ledger=False``: do not record answers. ``progress=False``: do not show progress.
    - ``client``: the server to use, as `ollama_nb.connect` returns it.
    - ``think``, ``format``, ``choices``, ``regex``, ``grammar``, ``keep_alive``, and every model option
      (``temperature``, ``num_ctx``, ``seed``, …).

    Other keywords raise BadRequest.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __repr__(self) -> str:
        methods = ", ".join(name for name in vars(Accessor) if not name.startswith("_"))
        return f"models over {len(self._rows):,} rows: {methods}"

    def generate(self, model: str, prompt: str | None = None, *, system: str | None = None, **keywords: Any) -> Result:
        """Answer ``prompt`` for each row.

        Args:
            model: The model's name.
            prompt: A template; without one, the values of a Series are the prompts.
            system: The system message of every request.

        Returns:
            The answers, a Series of strings.

        Example:
            >>> df.ollama.generate("qwen3:0.6b", "Translate into French: {{text}}", temperature=0)  # doctest: +SKIP
        """
        options, fields = _parsed(keywords, "prompt", "system")
        if system is not None:
            fields["system"] = system
        return self._texts("answer", jobs.generating(model, fields), columns.texts(self._rows, prompt), options)

    def chat(
        self,
        model: str,
        prompt: str | None = None,
        *,
        system: str | None = None,
        examples: Iterable[tuple[str, str]] = (),
        **keywords: Any,
    ) -> Result:
        """Answer each row as a chat message.

        Args:
            model: The model's name.
            prompt: A template; without one, the values of a Series, which may also be lists of messages (one
                conversation per row).
            system: The system message of every request.
            examples: Pairs of a message and its correct answer.

        Returns:
            The answers, a Series of strings.
        """
        options, fields = _parsed(keywords, "prompt", "system", "examples")
        before = [*jobs.system_message(system), *jobs.example_messages(jobs.pairs(examples, "answer"))]
        inputs: list[RowInput] = [*columns.texts(self._rows, prompt)]
        if prompt is None and isinstance(self._rows, pd.Series):
            rows = zip(self._rows, inputs, strict=True)
            inputs = [row if isinstance(row, list) else text for row, text in rows]
        return self._texts("answer", jobs.chatting("answered", model, fields, before), inputs, options)

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
        """Choose one label for each row. The model cannot answer anything else.

        Args:
            model: The model's name.
            labels: The labels, or a dict of labels and their meanings.
            text: A template; without one, the values of a Series.
            system: Replaces the default instructions.
            examples: Pairs of a text and its label.

        Returns:
            A categorical Series whose categories are the labels.
        """
        meanings = jobs.described_labels(labels)
        pairs = jobs.pairs(examples, "label")
        if wrong := [label for _, label in pairs if label not in meanings]:
            raise BadRequest(f'examples: "{wrong[0]}" is not one of the labels')
        fixed = {"choices": [*meanings]}
        given = {"temperature": 0, "think": False, **keywords, **fixed}
        options, fields = _parsed(given, "text", "system", "examples")
        before = [
            *jobs.system_message(jobs.label_instructions(meanings) if system is None else system),
            *jobs.example_messages(pairs),
        ]
        job = jobs.chatting("classified", model, fields, before, jobs.one_of(meanings))

        def result(outcomes: list[Outcome]) -> Result:
            return columns.label_column(outcomes, self._rows.index, "label", [*meanings])

        return self._run(job, [*columns.texts(self._rows, text)], options, result)

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
        """Extract named fields from each row's text.

        Args:
            model: The model's name.
            fields: A Pydantic model, dataclass or TypedDict, or a dict from names to a type, a list of choices, a
                description, or a pair of type and description.
            text: A template; without one, the values of a Series.
            system: Replaces the default instructions.
            examples: Pairs of a text and its fields (a value of the type, or a dict).

        Returns:
            A DataFrame with a typed column for each field.
        """
        shape = shape_of(fields)
        instructions = jobs.field_instructions(shape.schema) if system is None else system
        pairs = [(given, jobs.example_json(found, shape)) for given, found in jobs.pairs(examples, "fields")]
        given = {"temperature": 0, "num_predict": jobs.MAX_RECORD, "think": False, **keywords}
        options, request = _parsed({**given, "format": shape.schema}, "text", "system", "examples")
        before = [*jobs.system_message(instructions), *jobs.example_messages(pairs)]
        job = jobs.chatting("extracted", model, request, before, jobs.matches(shape))

        def result(outcomes: list[Outcome]) -> Result:
            values = [shape.parse(found["value"]) if isinstance(found, dict) else None for found in outcomes]
            records = [None if value is None else jobs.to_record(value) for value in values]
            return columns.record_columns(records, self._rows.index, shape.schema)

        found = self._run(job, [*columns.texts(self._rows, text)], options, result)
        assert isinstance(found, pd.DataFrame)
        return found

    def embed(self, model: str, *, text: str | None = None, dimensions: int = 0, **keywords: Any) -> pd.DataFrame:
        """Embed each row's text.

        Args:
            model: The model's name.
            text: A template; without one, the values of a Series.
            dimensions: Shorten the vectors to this many dimensions; 0 for all.

        Returns:
            Unit vectors: a DataFrame of float32 with a column for each dimension.
        """
        options, fields = _parsed(keywords, "text", "dimensions")
        if dimensions:
            fields["dimensions"] = dimensions

        def result(outcomes: list[Outcome]) -> Result:
            return pd.DataFrame(jobs.vectors(outcomes), index=self._rows.index)

        found = self._run(jobs.embedding(model, fields), [*columns.texts(self._rows, text)], options, result)
        assert isinstance(found, pd.DataFrame)
        return found

    def similar(self, model: str, query: str, k: int = 5, *, text: str | None = None, **keywords: Any) -> pd.DataFrame:
        """Find the rows that are most similar in meaning to ``query``.

        The vectors of the rows are recorded, so a later query computes one vector only.

        Args:
            model: The embedding model's name.
            query: The text to compare with.
            k: The number of rows to return.
            text: A template; without one, the values of a Series.

        Returns:
            The ``k`` best rows, best first, with a column ``score`` (cosine similarity, -1 to 1).
        """
        options, fields = _parsed(self._ranking_keywords(keywords, k), "text", "k")
        inputs: list[RowInput] = [query, *columns.texts(self._rows, text)]
        labels = ["query", *self._rows.index.tolist()]
        outcomes = run(jobs.embedding(model, fields, needs_all=True), inputs, options, labels, _discard)
        matrix = jobs.vectors(outcomes).astype(np.float64)
        return self._best((matrix[1:] @ matrix[0]).tolist(), k)

    def rerank(
        self, model: str, query: str, k: int | None = None, *, text: str | None = None, **keywords: Any
    ) -> pd.DataFrame:
        """Sort the rows by how well they answer ``query``.

        Args:
            model: A reranking model, which reads query and row together (scores 0 to 1), or any embedding model
                (cosine similarity).
            query: The question.
            k: The number of rows to return; None for all.
            text: A template; without one, the values of a Series.

        Returns:
            The rows, best first, with a column ``score``.
        """
        options, fields = _parsed(self._ranking_keywords(keywords, k), "text", "k")
        job = jobs.ranking(model, query, fields)
        outcomes = run(job, [*columns.texts(self._rows, text)], options, self._rows.index.tolist(), _discard)
        return self._best(jobs.scores(outcomes), k)

    def _texts(self, name: str, job: Job, inputs: Iterable[RowInput], options: FrameOptions) -> Result:
        def result(outcomes: list[Outcome]) -> Result:
            return columns.text_column(outcomes, self._rows.index, name)

        return self._run(job, [*inputs], options, result)

    def _run(
        self, job: Job, inputs: list[RowInput], options: FrameOptions, result: Callable[[list[Outcome]], Result]
    ) -> Result:
        outcomes = run(job, inputs, options, self._rows.index.tolist(), lambda so_far: _keep(result(so_far)))
        return columns.with_errors(result(outcomes), outcomes) if options.errors == "keep" else result(outcomes)

    def _ranking_keywords(self, keywords: Mapping[str, Any], k: int | None) -> Mapping[str, Any]:
        """The keywords of a ranking. Raises BadRequest, before any request, for what would fail afterwards."""
        if "errors" in keywords:
            raise BadRequest("a ranking needs all rows, so it takes no `errors`; `on_overflow` may cut long texts")
        if k is not None and (not isinstance(k, int | np.integer) or k < 1):
            raise BadRequest(f"k is the number of rows to return, at least 1, not {k!r}")
        names = [self._rows.name] if isinstance(self._rows, pd.Series) else [*self._rows.columns]
        if SCORE in names:
            raise BadRequest(f'there is already a column "{SCORE}": rename it first')
        return keywords

    def _best(self, scores: list[float], k: int | None) -> pd.DataFrame:
        """The rows with a score, best first; rows with equal scores keep their order."""
        frame = self._rows.to_frame() if isinstance(self._rows, pd.Series) else self._rows
        order = [at for at in np.argsort(-np.asarray(scores), kind="stable") if not np.isnan(scores[at])][:k]
        return frame.iloc[order].assign(**{SCORE: [scores[at] for at in order]})


def accessor(rows: Rows) -> Accessor:
    """The factory that is registered with pandas."""
    return Accessor(rows)


def _parsed(keywords: Mapping[str, Any], *own: str) -> tuple[FrameOptions, dict[str, Any]]:
    """Split keywords into run options and the fields of the request. Raises BadRequest for unknown ones.

    ``own`` are the method's own parameters, which may be suggested for a misspelt keyword.
    """
    known = {*own, *_FRAME_OPTIONS, "on_overflow", *question.KEYWORDS}
    for name in keywords:
        other = {"prompt": "text", "text": "prompt"}.get(name, "")
        near = other if other in own else next(iter(get_close_matches(name, known, n=1)), "")
        if near and name not in known:
            raise BadRequest(f'unknown keyword "{name}", did you mean "{near}"?')
    options = FrameOptions(**{name: given for name, given in keywords.items() if name in _FRAME_OPTIONS})
    overflow: Overflow = keywords.get("on_overflow", "error")
    rest = {name: given for name, given in keywords.items() if name not in _FRAME_OPTIONS and name != "on_overflow"}
    if (rest.get("n") or 1) != 1:
        raise BadRequest("a row has one answer: leave out `n`")
    return options, {**question.request_fields(rest), "truncate": question.may_truncate(overflow)}


def _keep(partial: Result) -> None:
    """Keep the result of an interrupted run in ``_ollama``, as the magics do."""
    shell = get_ipython()
    if shell is not None:
        shell.user_ns["_ollama"] = partial


def _discard(so_far: list[Outcome]) -> None:
    """An incomplete ranking would be wrong; the vectors and scores so far are in the ledger."""
