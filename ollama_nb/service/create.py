"""POST /api/create: create a model from an installed one, a package or uploaded blobs."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncGenerator
from dataclasses import replace

from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.api.requests import CreateRequest
from ollama_nb.errors import BadRequest, ModelNotFound
from ollama_nb.service.backend import Backend
from ollama_nb.service.requests import Work, run_in_thread
from ollama_nb.service.resolve import find, parse_name
from ollama_nb.service.templates import check_names, check_rendering, check_template
from ollama_nb.service.transfer import PullPlan, run_pull
from ollama_nb.store import quantization
from ollama_nb.store.assemble import assemble, read_files
from ollama_nb.store.packages import is_package


def run_create(backend: Backend, request: CreateRequest) -> AsyncGenerator[Progress, None]:
    """Yield progress lines, ``success`` last. A model of that name is replaced, its unused layers removed.

    Raises Ollama's errors before the first line for a request that cannot succeed.
    """
    prepare = functools.partial(_prepare, backend, request)
    return run_in_thread(backend.requests, request.request_id, request.model, "create", prepare)


async def _prepare(backend: Backend, request: CreateRequest) -> Work:
    parse_name(request.model)
    files = read_files(request.files)
    read_files(request.adapters)
    read_files(request.draft_files)
    warnings = _unused_fields(request)
    check_template(request.template)
    check_names(request.renderer, request.parser)
    if request.template and not request.renderer:
        await check_rendering(backend, request.template)
    for wanted in (request.quantize, request.draft_quantize):
        if wanted:
            quantization.parse_type(wanted)
    base, plan = await _base(backend, request.from_) if request.from_ else (None, None)

    def work(report: Report, cancelled: threading.Event) -> None:
        found = base
        if plan is not None:
            found = backend.store.resolve(run_pull(backend, plan, report, cancelled))
        made = functools.partial(_with_warnings, report, warnings)
        assemble(backend.store, request, base=found, files=files, report=made, tools=backend.tools(cancelled))

    return work


def _unused_fields(request: CreateRequest) -> tuple[str, ...]:
    """A warning for each field and parameter of the request that has no effect.

    Raises BadRequest for parameters with which every request would be refused, and, when the request is
    strict, for fields and parameters that have no effect.
    """
    unused = (*request.ignored, *Options.layered(request.parameters)[1])
    if unused and request.strict:
        raise BadRequest("; ".join(unused))
    return unused


def _with_warnings(report: Report, warnings: tuple[str, ...], line: Progress) -> None:
    report(replace(line, warnings=warnings) if line.status == "success" else line)


async def _base(backend: Backend, text: str) -> tuple[Model | None, PullPlan | None]:
    """The model to build on, or the plan for pulling it first."""
    if not is_package(text):
        try:
            return await find(backend, text), None
        except ModelNotFound:
            pass
    return None, PullPlan.of(text)
