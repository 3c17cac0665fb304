"""POST /api/create: a new model from an installed one, a package or uploaded blobs."""

from __future__ import annotations

import functools
import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

from ollama_nb.api.chat import CreateRequest
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.errors import BadRequest, ModelNotFound
from ollama_nb.service.backend import Backend
from ollama_nb.service.making import tools
from ollama_nb.service.progress import in_thread
from ollama_nb.service.resolve import find, parse_name
from ollama_nb.service.templates import check_names, check_template
from ollama_nb.service.transfer import PullPlan, run_pull
from ollama_nb.store import quantization
from ollama_nb.store.assemble import assemble, read_files
from ollama_nb.store.packages import is_package


async def create(backend: Backend, request: CreateRequest) -> AsyncGenerator[Progress, None]:
    """Yield progress lines, ``success`` last. A model of that name is replaced, its unused layers removed.

    Raises Ollama's errors before the first line for a request that cannot be right.
    """
    parse_name(request.model)
    files = read_files(request.files)
    read_files(request.adapters)
    read_files(request.draft_files)
    warnings = _vain(request)
    check_template(request.template)
    check_names(request.renderer, request.parser)
    for wanted in (request.quantize, request.draft_quantize):
        if wanted:
            quantization.parse(wanted)
    base, plan = await _base(backend, request.from_) if request.from_ else (None, None)

    def work(report: Report, cancelled: threading.Event) -> None:
        found = base
        if plan is not None:
            found = backend.store.resolve(run_pull(backend, plan, report, cancelled))
        made = functools.partial(_with_warnings, report, warnings)
        assemble(backend.store, request, base=found, files=files, report=made, tools=tools(backend, cancelled))

    with backend.requests.enter(request.request_id, request.model, "create") as live:
        async with aclosing(in_thread(work, live)) as lines:
            async for line in lines:
                yield line


def _vain(request: CreateRequest) -> tuple[str, ...]:
    """What the request has in vain: fields and parameters that nobody knows.

    Raises BadRequest for parameters of a wrong type, with which the model could never be used, and for everything in
    vain when the request is strict.
    """
    vain = (*request.ignored, *Options.layered(request.parameters)[1])
    if vain and request.strict:
        raise BadRequest("; ".join(vain))
    return vain


def _with_warnings(report: Report, warnings: tuple[str, ...], line: Progress) -> None:
    report(replace(line, warnings=warnings) if line.status == "success" else line)


async def _base(backend: Backend, text: str) -> tuple[Model | None, PullPlan | None]:
    """The model to build on, or how it is pulled first."""
    if not is_package(text):
        try:
            return await find(backend, text), None
        except ModelNotFound:
            pass
    return None, PullPlan.of(text)
