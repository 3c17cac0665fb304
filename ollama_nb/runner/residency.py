"""Which models are in memory: decisions only. Events go in, actions come out, and ``pool`` carries them out.

Theory of operation
===================

A *resident* is one set of weights in memory with the runner process that holds it. Models that differ only in LoRA
adapters are one resident: they share its weights and its process, and each of them is one *use* of the resident.

A request for a model is a *ticket*. If the model is loaded and can serve the request, the ticket is granted at once:
the request gets a *lease*. Otherwise the ticket is queued. A lease keeps its resident in memory. When the last lease of
a use is released, its *keep-alive* time begins. When that has passed, the use ends; when its last use ends, the
resident is unloaded.

The queue is walked after every event, oldest ticket first, and each ticket meets one of these cases:

- Its model is loaded so that it serves the request (see ``placement.serves``): the ticket is granted.
- Its model is loading: the ticket waits.
- Its model is loaded in another way, for example with a smaller context: the resident is *drained*. It grants no more
  leases and is stopped when the last one is released; then the model is loaded as the ticket needs it. Later tickets
  for the same model wait behind this one, so that it cannot starve.
- Its model is not in memory: it is loaded, if the number of residents and the free memory permit that. If not, one
  resident is *evicted* by draining it: an idle one if possible, then the one with the shortest keep-alive. The ticket
  waits meanwhile. Only one model is loaded at a time.
- Its model, loaded as the ticket wants it, has crashed too often in a short time: the ticket is refused until that time
  has passed.
- Its model needs more memory than is free and could be freed: the ticket takes a smaller load (see
  ``Placement.smaller``), or is refused before anything is evicted.

A load that no ticket waits for any more is stopped.

States of a resident
====================

=========  =============================================  ==============================================
state      event                                          next state, and what happens
=========  =============================================  ==============================================
(absent)   a ticket needs it, there is space              LOADING; action ``StartRunner``
LOADING    ``ready``                                      READY; waiting tickets that it serves are granted
LOADING    ``failed``                                     (absent); tickets that wanted exactly it are refused
LOADING    ``failed`` because memory ran out              as above, but tickets that can do with less stay queued
LOADING    no ticket waits for it                         STOPPING; action ``StopRunner``
READY      ``request`` that it serves, not draining       READY; action ``Grant``
READY      ``request`` that it does not serve             READY and draining, or STOPPING if it is idle
READY      keep-alive passed, or ``unload`` while idle    STOPPING; action ``StopRunner``
READY      evicted, or last lease of a draining one       STOPPING; action ``StopRunner``
READY      ``died``                                       (absent); its requests fail by themselves
STOPPING   ``stopped``                                    (absent)
any        ``close``                                      STOPPING; action ``StopRunner``, queue refused
=========  =============================================  ==============================================

Every ticket is granted, refused or forgotten exactly once, and a resident is never stopped while it has leases, except
by ``close``. The only input besides the events is ``free_memory``. Times are seconds of the pool's clock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.api.units import human_bytes
from ollama_nb.errors import Busy, InsufficientMemory, OllamaError, RunnerCrashed
from ollama_nb.runner import wire
from ollama_nb.runner.placement import Placement, serves

WeightsPath = str
"""Identifies a resident: models with the same weights file share it."""

LoadKey = wire.EngineConfig
"""Identifies a way to load a model: what one request asked for never counts against requests that did not."""

CRASHES = 3  # crashes of a model, loaded in the same way, within CRASH_WINDOW after which it is refused
CRASH_WINDOW = 60.0  # seconds; also how long it is refused after its last crash
BUSY = "server busy, please try again.  maximum pending requests exceeded"


def load_key(load: wire.EngineConfig) -> LoadKey:
    """``load`` without the number of sequences, which depends on the memory that is free at the moment."""
    return msgspec.structs.replace(load, n_seq=1)


class ResidentState(enum.Enum):
    LOADING = enum.auto()
    READY = enum.auto()
    STOPPING = enum.auto()


@dataclass(slots=True, eq=False)
class Ticket:
    """A request for a model, granted at once or queued.

    ``place`` is how the model would be loaded for this request alone; it is replaced by a smaller one if there is not
    enough memory. ``keep_alive`` None leaves the keep-alive time of the model as it is.
    """

    model: Model
    place: Placement
    options: Options
    keep_alive: float | None = None
    shrunk: bool = False

    @property
    def wanted(self) -> wire.EngineConfig:
        return self.place.load

    def shrink(self, place: Placement) -> None:
        """Be content with one of ``place.smaller``, and with nothing below it."""
        self.place, self.shrunk = replace(place, must_fit=self.place.must_fit), True

    @property
    def key(self) -> WeightsPath:
        return self.wanted.path


@dataclass(slots=True, eq=False)
class ModelUse:
    """The use of a resident by one model: its leases and, without any, the time at which its keep-alive ends."""

    model: Model
    keep_alive: float
    leases: int = 0
    expires_at: float | None = None

    def has_expired(self, now: float) -> bool:
        return self.leases == 0 and self.expires_at is not None and self.expires_at <= now


@dataclass(slots=True, eq=False)
class Resident:
    """Weights in memory, or being loaded or unloaded. ``model`` is the model that they were loaded for.

    ``bytes_needed`` is an estimate of its memory, and ``shrunk`` set if it was loaded with less than was wanted.
    ``uses`` are the models that share them, by their adapters. ``default_keep_alive`` applies to models whose requests
    set no keep-alive. A ``draining`` resident grants no more leases.
    """

    model: Model
    load: wire.EngineConfig
    default_keep_alive: float
    state: ResidentState = ResidentState.LOADING
    uses: dict[tuple[Path, ...], ModelUse] = field(default_factory=dict)
    draining: bool = False
    bytes_needed: int = 0
    shrunk: bool = False

    @property
    def key(self) -> WeightsPath:
        return self.load.path

    @property
    def leases(self) -> int:
        return sum(use.leases for use in self.uses.values())

    @property
    def keep_alive(self) -> float:
        """The longest keep-alive time of its models, in seconds."""
        return max((use.keep_alive for use in self.uses.values()), default=self.default_keep_alive)

    @property
    def idle(self) -> bool:
        return self.state is ResidentState.READY and self.leases == 0

    def serves(self, ticket: Ticket) -> bool:
        """Also if it was loaded smaller than ``ticket`` would be: trying again would run out of memory again."""
        ways = (ticket.place, *ticket.place.smaller) if self.shrunk else (ticket.place,)
        return any(serves(self.load, way.load, ticket.options) for way in ways)

    def accepts(self, ticket: Ticket) -> bool:
        return self.state is ResidentState.READY and not self.draining and self.serves(ticket)


@dataclass(frozen=True, slots=True)
class StartRunner:
    """Start a runner process and load the resident into it."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class StopRunner:
    """Stop the runner process of a resident, also while it loads."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class Grant:
    """Give a request its lease."""

    ticket: Ticket
    resident: Resident


@dataclass(frozen=True, slots=True)
class Refuse:
    """Fail a request."""

    ticket: Ticket
    error: OllamaError


Action = StartRunner | StopRunner | Grant | Refuse


@dataclass(slots=True)
class Residency:
    """The residents and the queue of tickets. Every event returns the actions that are due, in order."""

    max_models: int
    max_queue: int
    keep_alive: float
    free_memory: Callable[[], int]
    residents: dict[WeightsPath, Resident] = field(default_factory=dict)
    queue: list[Ticket] = field(default_factory=list)
    _crashes: dict[LoadKey, deque[tuple[float, str]]] = field(default_factory=dict)

    # events

    def request(self, ticket: Ticket, now: float) -> list[Action]:
        """A request arrives. Only tickets that must wait count against the length limit of the queue."""
        resident = self.residents.get(ticket.key)
        if resident is not None and resident.accepts(ticket) and not self._has_waiting(ticket.key):
            return [self._grant(ticket, resident)]
        if len(self.queue) >= self.max_queue:
            return [Refuse(ticket, Busy(BUSY))]
        self.queue.append(ticket)
        return self._settle(now)

    def forget(self, ticket: Ticket, now: float) -> list[Action]:
        """The caller of a queued ticket went away."""
        if ticket in self.queue:
            self.queue.remove(ticket)
        return self._settle(now)

    def ready(self, resident: Resident, now: float) -> list[Action]:
        """A load has succeeded. If it was stopped meanwhile, it remains STOPPING."""
        if resident.state is ResidentState.LOADING:
            resident.state = ResidentState.READY
        return self._settle(now)

    def failed(self, resident: Resident, error: OllamaError, now: float) -> list[Action]:
        """A load failed: the tickets that wanted exactly this load get the error, others try their own.

        The death of the process counts as a crash. If memory ran out, idle residents are stopped, and the tickets try
        once more with less memory, if that is possible without changing what they asked for.
        """
        if isinstance(error, RunnerCrashed):
            self._note_crash(resident.load, error.message, now)
        self._drop(resident)
        no_memory = isinstance(error, InsufficientMemory)
        actions: list[Action] = []
        if no_memory:
            error = error.with_message(f"{error.message}; {self._sizes(resident.load, resident.bytes_needed)}")
            actions += [action for other in self.residents.values() if other.idle for action in self._drain(other)]
        for ticket in [waiting for waiting in self.queue if load_key(waiting.wanted) == load_key(resident.load)]:
            if no_memory and ticket.place.smaller:
                ticket.shrink(ticket.place.smaller[-1])
            else:
                self.queue.remove(ticket)
                actions.append(Refuse(ticket, error))
        return actions + self._settle(now)

    def died(self, resident: Resident, cause: str, now: float, *, blameless: bool = False) -> list[Action]:
        """The process of a loaded model ended. ``blameless``: it was killed from outside, which is not a crash."""
        if not blameless:
            self._note_crash(resident.load, cause, now)
        self._drop(resident)
        return self._settle(now)

    def stopped(self, resident: Resident, now: float) -> list[Action]:
        """A resident that was to be stopped has stopped."""
        self._drop(resident)
        return self._settle(now)

    def released(self, resident: Resident, now: float, adapters: tuple[Path, ...] = ()) -> list[Action]:
        """A lease is released; after the last one the keep-alive time begins."""
        use = resident.uses[adapters]
        use.leases -= 1
        if use.leases == 0:
            use.expires_at = now + use.keep_alive
        return self._settle(now)

    def unload(self, key: WeightsPath, now: float, adapters: tuple[Path, ...] = ()) -> list[Action]:
        """Unload a model as soon as it is idle, unless a later request sets another keep-alive."""
        resident = self.residents.get(key)
        if resident is not None and (use := resident.uses.get(adapters)):
            use.keep_alive = 0.0
            use.expires_at = now
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: unload what has expired."""
        return self._settle(now)

    def close(self, error: OllamaError) -> list[Action]:
        """Refuse every queued ticket with ``error`` and stop every resident, even with leases."""
        refused: list[Action] = [Refuse(ticket, error) for ticket in self.queue]
        self.queue.clear()
        running = [resident for resident in self.residents.values() if resident.state is not ResidentState.STOPPING]
        for resident in running:
            resident.state = ResidentState.STOPPING
        return [*refused, *map(StopRunner, running)]

    def next_tick(self) -> float | None:
        """The time at which the next keep-alive ends; None if there is no such time."""
        uses = (use for resident in self.residents.values() for use in resident.uses.values())
        return min((u.expires_at for u in uses if u.leases == 0 and u.expires_at is not None), default=None)

    # decisions

    def _settle(self, now: float) -> list[Action]:
        return [*self._serve_queue(now), *self._stop_unwanted_loads(), *self._expire(now)]

    def _serve_queue(self, now: float) -> Iterator[Action]:
        """Walk the queue once, oldest first. Models in ``blocked`` must be loaded for a ticket further to the front."""
        for other in self.residents.values():
            other.draining = False
        blocked: set[WeightsPath] = set()
        load_decided = False
        for ticket in list(self.queue):
            if ticket.key in blocked:
                continue
            resident = self.residents.get(ticket.key)
            error: OllamaError | None = None
            if resident is None:
                error = self._quarantine(ticket.wanted, now) or (None if load_decided else self._lacking(ticket))
            if error is not None:
                self.queue.remove(ticket)
                yield Refuse(ticket, error)
            elif resident is None:
                blocked.add(ticket.key)
                if not load_decided:
                    yield from self._load_or_evict(ticket)
                load_decided = True
            elif resident.accepts(ticket):
                self.queue.remove(ticket)
                yield self._grant(ticket, resident)
            elif not resident.serves(ticket) or resident.state is ResidentState.STOPPING or resident.draining:
                blocked.add(ticket.key)
                yield from self._drain(resident)

    def _load_or_evict(self, ticket: Ticket) -> Iterator[Action]:
        """Start the load for ``ticket``, or evict one resident if there is no space for it."""
        residents = self.residents.values()
        if any(r.state is ResidentState.LOADING for r in residents):
            return
        if ticket.shrunk and any(r.state is ResidentState.STOPPING for r in residents):
            return  # their memory is needed
        too_large = bool(residents) and ticket.place.bytes_needed > self.free_memory()
        if len(residents) < self.max_models and not too_large:
            yield self._start(ticket)
        elif not any(r.state is ResidentState.STOPPING for r in residents):
            # Idle ones first, then the shortest keep-alive, then by path; a busy one is drained.
            victim = min(residents, key=lambda r: (r.leases > 0, r.keep_alive, r.key))
            yield from self._drain(victim)

    def _lacking(self, ticket: Ticket) -> InsufficientMemory | None:
        """Choose the largest load for which unloading everything frees enough memory, or return the error."""
        if not ticket.place.must_fit:
            return None
        most = self.free_memory() + self._evictable()
        ways = (ticket.place, *ticket.place.smaller)
        way = next((way for way in ways if way.bytes_needed <= most), None)
        if way is None:
            sizes = self._sizes(ticket.wanted, ticket.place.bytes_needed)
            return InsufficientMemory(f"model '{ticket.model.name.short}' does not fit into memory: {sizes}")
        if way is not ticket.place:
            ticket.shrink(way)
        return None

    def _evictable(self) -> int:
        return sum(resident.bytes_needed for resident in self.residents.values())

    def _sizes(self, load: wire.EngineConfig, needed: int) -> str:
        return (
            f"it needs about {human_bytes(needed)} with a context of {load.n_ctx} tokens"
            f"{f' for {load.n_seq} requests at once' if load.n_seq > 1 else ''}, {human_bytes(self.free_memory())} are "
            f"free and unloading other models frees about {human_bytes(self._evictable())}: lower num_ctx or use a "
            "smaller model"
        )

    def _drain(self, resident: Resident) -> Iterator[Action]:
        """Stop an idle resident; let a busy one finish its requests without granting new ones."""
        resident.draining = True
        if resident.idle:
            resident.state = ResidentState.STOPPING
            yield StopRunner(resident)

    def _stop_unwanted_loads(self) -> Iterator[Action]:
        """Stop loads that no ticket waits for any more."""
        for resident in self.residents.values():
            if resident.state is ResidentState.LOADING and not any(resident.serves(ticket) for ticket in self.queue):
                resident.state = ResidentState.STOPPING
                yield StopRunner(resident)

    def _expire(self, now: float) -> Iterator[Action]:
        for resident in self.residents.values():
            expired = [adapters for adapters, use in resident.uses.items() if use.has_expired(now)]
            for adapters in expired:
                del resident.uses[adapters]
            if expired and not resident.uses and resident.state is ResidentState.READY:
                resident.state = ResidentState.STOPPING
                yield StopRunner(resident)

    def _start(self, ticket: Ticket) -> StartRunner:
        resident = Resident(
            ticket.model,
            ticket.wanted,
            self.keep_alive,
            bytes_needed=ticket.place.bytes_needed,
            shrunk=ticket.shrunk,
        )
        self.residents[ticket.key] = resident
        return StartRunner(resident)

    def _grant(self, ticket: Ticket, resident: Resident) -> Grant:
        """Grant a lease. A keep-alive that a request sets remains in force for later requests without one."""
        use = resident.uses.setdefault(ticket.model.adapters, ModelUse(ticket.model, resident.default_keep_alive))
        if ticket.keep_alive is not None:
            use.keep_alive = ticket.keep_alive
        use.leases += 1
        return Grant(ticket, resident)

    def _has_waiting(self, key: WeightsPath) -> bool:
        return any(waiting.key == key for waiting in self.queue)

    def _drop(self, resident: Resident) -> None:
        if self.residents.get(resident.key) is resident:
            del self.residents[resident.key]

    # crashes

    def _note_crash(self, load: wire.EngineConfig, cause: str, now: float) -> None:
        self._crashes.setdefault(load_key(load), deque(maxlen=CRASHES)).append((now, cause))
        for other in [k for k, crashes in self._crashes.items() if crashes[-1][0] <= now - CRASH_WINDOW]:
            del self._crashes[other]

    def _quarantine(self, load: wire.EngineConfig, now: float) -> RunnerCrashed | None:
        """The error for a model that has crashed too often when it was loaded like this, while it is refused."""
        crashes = self._crashes.get(load_key(load), deque())
        if len(crashes) < CRASHES or crashes[-1][0] - crashes[0][0] > CRASH_WINDOW:
            return None
        left = crashes[-1][0] + CRASH_WINDOW - now
        if left <= 0:
            return None
        return RunnerCrashed(
            f"the model runner stopped {CRASHES} times within a minute, the model is refused for {left:.0f} s: "
            f"{crashes[-1][1]}"
        )
