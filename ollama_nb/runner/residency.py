"""Which models stay in memory: events in, actions out. Pure but for a look at the free memory; ``pool`` acts.

Models that differ only in adapters are one resident: they share its weights and its process, each for its own time.
Rules: one load at a time; a model is never unloaded while somebody uses it; requests for one model are served in the
order of asking, so a request that needs it loaded anew is not starved by those that do not; a request that waits is
granted, refused or forgotten exactly once.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ollama_nb.api.models import Model
from ollama_nb.api.options import Options
from ollama_nb.errors import Busy, OllamaError, RunnerCrashed
from ollama_nb.runner import wire
from ollama_nb.runner.placement import serves

Key = str
"""What makes two models one in memory: the path of the weights."""

CRASHES = 3
CRASH_WINDOW = 60.0
"""So many deaths in so many seconds, and the model is refused for as long."""
BUSY = "server busy, please try again.  maximum pending requests exceeded"


class State(enum.Enum):
    LOADING = enum.auto()
    READY = enum.auto()
    STOPPING = enum.auto()


@dataclass(frozen=True, slots=True, eq=False)
class Ticket:
    """A request that wants a model: how it would be loaded for it alone, and about how many bytes that takes."""

    model: Model
    wanted: wire.Load
    options: Options
    need: int = 0
    keep_alive: float | None = None

    @property
    def key(self) -> Key:
        return self.wanted.path


@dataclass(slots=True, eq=False)
class Stay:
    """How long one of a resident's models stays. Times are seconds of the pool's clock."""

    model: Model
    keep_alive: float
    leases: int = 0
    expires_at: float | None = None

    def is_over(self, now: float) -> bool:
        return self.leases == 0 and self.expires_at is not None and self.expires_at <= now


@dataclass(slots=True, eq=False)
class Resident:
    """Weights in memory, or on their way in or out. ``model`` is the one that they were loaded for.

    ``stays``: the models that use them, by their adapters; ``life``: seconds for those that ask for none.
    """

    model: Model
    load: wire.Load
    life: float
    state: State = State.LOADING
    stays: dict[tuple[Path, ...], Stay] = field(default_factory=dict)
    leaving: bool = False

    @property
    def key(self) -> Key:
        return self.load.path

    @property
    def leases(self) -> int:
        return sum(stay.leases for stay in self.stays.values())

    @property
    def keep_alive(self) -> float:
        """The longest life that one of the models asked for."""
        return max((stay.keep_alive for stay in self.stays.values()), default=self.life)

    @property
    def idle(self) -> bool:
        return self.state is State.READY and self.leases == 0

    def serves(self, ticket: Ticket) -> bool:
        return serves(self.load, ticket.wanted, ticket.options)

    def open_to(self, ticket: Ticket) -> bool:
        return self.state is State.READY and not self.leaving and self.serves(ticket)


@dataclass(frozen=True, slots=True)
class Start:
    resident: Resident


@dataclass(frozen=True, slots=True)
class Stop:
    """End the process, or the load, of a resident."""

    resident: Resident


@dataclass(frozen=True, slots=True)
class Grant:
    ticket: Ticket
    resident: Resident


@dataclass(frozen=True, slots=True)
class Refuse:
    ticket: Ticket
    error: OllamaError


Action = Start | Stop | Grant | Refuse


@dataclass(slots=True)
class Residency:
    """The state: residents by key, and the queue of tickets. Every event returns what is to be done now, in order."""

    max_models: int
    max_queue: int
    keep_alive: float
    free_memory: Callable[[], int]
    residents: dict[Key, Resident] = field(default_factory=dict)
    queue: list[Ticket] = field(default_factory=list)
    _crashes: dict[Key, deque[tuple[float, str]]] = field(default_factory=dict)

    # events

    def request(self, ticket: Ticket, now: float) -> list[Action]:
        """Somebody wants a model. Only requests that must wait count against the bound of the queue."""
        resident = self.residents.get(ticket.key)
        if resident is not None and resident.open_to(ticket) and not self._is_overtaking(ticket):
            return [self._grant(ticket, resident)]
        if len(self.queue) >= self.max_queue:
            return [Refuse(ticket, Busy(BUSY))]
        self.queue.append(ticket)
        return self._settle(now)

    def forget(self, ticket: Ticket, now: float) -> list[Action]:
        """The caller of a waiting ticket went away."""
        if ticket in self.queue:
            self.queue.remove(ticket)
        return self._settle(now)

    def ready(self, resident: Resident, now: float) -> list[Action]:
        """A load is done. One that was stopped meanwhile goes on stopping."""
        if resident.state is State.LOADING:
            resident.state = State.READY
        return self._settle(now)

    def failed(self, resident: Resident, error: OllamaError, now: float) -> list[Action]:
        """A load failed; those who waited for it get the error. A death counts as a crash."""
        if isinstance(error, RunnerCrashed):
            self._note_crash(resident.key, error.message, now)
        self._drop(resident)
        refused: list[Action] = []
        for ticket in [waiting for waiting in self.queue if resident.serves(waiting)]:
            self.queue.remove(ticket)
            refused.append(Refuse(ticket, error))
        return refused + self._settle(now)

    def died(self, resident: Resident, cause: str, now: float, *, blameless: bool = False) -> list[Action]:
        """A loaded model's process ended; its requests learn of it by themselves. ``blameless``: it was killed."""
        if not blameless:
            self._note_crash(resident.key, cause, now)
        self._drop(resident)
        return self._settle(now)

    def stopped(self, resident: Resident, now: float) -> list[Action]:
        """The end that a Stop asked for is reached."""
        self._drop(resident)
        return self._settle(now)

    def released(self, resident: Resident, now: float, adapters: tuple[Path, ...] = ()) -> list[Action]:
        """A request is done with a model; when it was the last one, the time to live begins."""
        stay = resident.stays[adapters]
        stay.leases -= 1
        if stay.leases == 0:
            stay.expires_at = now + stay.keep_alive
        return self._settle(now)

    def unload(self, key: Key, now: float, adapters: tuple[Path, ...] = ()) -> list[Action]:
        """Unload a model as soon as it is idle, unless a later request gives it a longer life."""
        resident = self.residents.get(key)
        if resident is not None and (stay := resident.stays.get(adapters)):
            stay.keep_alive = 0.0
            stay.expires_at = now
        return self._settle(now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        return self._settle(now)

    def close(self, error: OllamaError) -> list[Action]:
        """Nothing is wanted any more: who waits gets ``error``, and every model goes, in use or not."""
        refused: list[Action] = [Refuse(ticket, error) for ticket in self.queue]
        self.queue.clear()
        staying = [resident for resident in self.residents.values() if resident.state is not State.STOPPING]
        for resident in staying:
            resident.state = State.STOPPING
        return [*refused, *map(Stop, staying)]

    def next_tick(self) -> float | None:
        """When the next model expires; None when none will."""
        stays = (stay for resident in self.residents.values() for stay in resident.stays.values())
        return min((s.expires_at for s in stays if s.leases == 0 and s.expires_at is not None), default=None)

    # decisions

    def _settle(self, now: float) -> list[Action]:
        return [*self._serve_queue(now), *self._drop_unwanted(), *self._expire(now)]

    def _serve_queue(self, now: float) -> Iterator[Action]:
        """Walk the queue once, oldest first. ``blocked``: models that somebody further in front must have anew."""
        for other in self.residents.values():
            other.leaving = False
        blocked: set[Key] = set()
        loads_one = False
        for ticket in list(self.queue):
            if ticket.key in blocked:
                continue
            resident = self.residents.get(ticket.key)
            if resident is None and (error := self._quarantine(ticket.key, now)):
                self.queue.remove(ticket)
                yield Refuse(ticket, error)
            elif resident is None:
                blocked.add(ticket.key)
                if not loads_one:
                    yield from self._make_room(ticket)
                loads_one = True
            elif resident.open_to(ticket):
                self.queue.remove(ticket)
                yield self._grant(ticket, resident)
            elif not resident.serves(ticket) or resident.state is State.STOPPING or resident.leaving:
                blocked.add(ticket.key)
                yield from self._show_out(resident)

    def _make_room(self, ticket: Ticket) -> Iterator[Action]:
        """Start the load of ``ticket``, or make one step towards the room that it needs."""
        residents = self.residents.values()
        if any(r.state is State.LOADING for r in residents):
            return
        short = bool(residents) and ticket.need > self.free_memory()
        if len(residents) < self.max_models and not short:
            yield self._start(ticket)
        elif not any(r.state is State.STOPPING for r in residents):
            # Idle ones first, then the shortest life, then by path; a busy one is waited for.
            victim = min(residents, key=lambda r: (r.leases > 0, r.keep_alive, r.key))
            yield from self._show_out(victim)

    def _show_out(self, resident: Resident) -> Iterator[Action]:
        """Stop an idle resident; let a busy one finish what it does, but take nothing new."""
        resident.leaving = True
        if resident.idle:
            resident.state = State.STOPPING
            yield Stop(resident)

    def _drop_unwanted(self) -> Iterator[Action]:
        """A load that nobody waits for any more is stopped."""
        for resident in self.residents.values():
            if resident.state is State.LOADING and not any(resident.serves(ticket) for ticket in self.queue):
                resident.state = State.STOPPING
                yield Stop(resident)

    def _expire(self, now: float) -> Iterator[Action]:
        for resident in self.residents.values():
            over = [adapters for adapters, stay in resident.stays.items() if stay.is_over(now)]
            for adapters in over:
                del resident.stays[adapters]
            if over and not resident.stays and resident.state is State.READY:
                resident.state = State.STOPPING
                yield Stop(resident)

    def _start(self, ticket: Ticket) -> Start:
        resident = Resident(ticket.model, ticket.wanted, self.keep_alive)
        self.residents[ticket.key] = resident
        return Start(resident)

    def _grant(self, ticket: Ticket, resident: Resident) -> Grant:
        """The life that a request asks for stays in force for those who ask for none."""
        stay = resident.stays.setdefault(ticket.model.adapters, Stay(ticket.model, resident.life))
        if ticket.keep_alive is not None:
            stay.keep_alive = ticket.keep_alive
        stay.leases += 1
        return Grant(ticket, resident)

    def _is_overtaking(self, ticket: Ticket) -> bool:
        return any(waiting.key == ticket.key for waiting in self.queue)

    def _drop(self, resident: Resident) -> None:
        if self.residents.get(resident.key) is resident:
            del self.residents[resident.key]

    # crashes

    def _note_crash(self, key: Key, cause: str, now: float) -> None:
        self._crashes.setdefault(key, deque(maxlen=CRASHES)).append((now, cause))
        for other in [k for k, crashes in self._crashes.items() if crashes[-1][0] <= now - CRASH_WINDOW]:
            del self._crashes[other]

    def _quarantine(self, key: Key, now: float) -> RunnerCrashed | None:
        """The error for a model that keeps dying, while it is left alone."""
        crashes = self._crashes.get(key, deque())
        if len(crashes) < CRASHES or crashes[-1][0] - crashes[0][0] > CRASH_WINDOW:
            return None
        left = crashes[-1][0] + CRASH_WINDOW - now
        if left <= 0:
            return None
        return RunnerCrashed(
            f"the model runner stopped {CRASHES} times within a minute, the model is left alone for {left:.0f} s: "
            f"{crashes[-1][1]}"
        )
