"""The runner process: one model that answers over a socket. Started as ``python -m ollama_nb.runner.child FD PID``.

Only one thread drives the engine; its stack is large, because native tokenizers recurse for each character of a long
word. A second thread reads the socket, so that a Cancel stops a prefill in progress,
a Ping is answered in the middle of a step, and the end of the server ends this process. When the server does not read,
sending blocks and the engine waits, so that no queue grows.
"""

from __future__ import annotations

import os
import queue
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, cast

import msgspec

from ollama_nb.engine.engine import Engine
from ollama_nb.errors import Busy, InsufficientMemory, OllamaError, RunnerCrashed
from ollama_nb.runner import confine, wire

STACK = 128 << 20  # bytes; ``engine.tokenizer.MAX_UNSPLIT`` characters need 85 MB, which are used only then
NO_MEMORY = "the model cannot be loaded: memory ran out"
LAST_WRITE = 2.0  # seconds that the end of this process waits for a prefix that is being written to disk


class RunnerProcess:
    """Reads an EngineConfig, then serves requests until the socket closes."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._sending = threading.Lock()
        self._engine: Engine | None = None
        self._step_began: float | None = None

    def run(self) -> None:
        try:
            self._watch_sigterm()
            threading.Thread(target=self._read, name="reader", daemon=True).start()
        except RuntimeError as error:  # can't start new thread
            self._refuse_load(error)
        else:
            run_with_stack(self._serve, STACK)

    def _refuse_load(self, error: RuntimeError) -> None:
        self._send(wire.LoadFailed(f"the model runner cannot be started: {error}", Busy.status, Busy.code))

    # engine thread

    def _serve(self) -> None:
        load = self._inbox.get()
        try:
            engine = self._engine = Engine(load)
        except OllamaError as error:
            self._send(wire.LoadFailed(error.message, error.status, error.code))
            return
        except MemoryError:
            self._send(wire.LoadFailed(NO_MEMORY, InsufficientMemory.status, InsufficientMemory.code))
            return
        except RuntimeError as error:  # can't start new thread
            self._refuse_load(error)
            return
        self._send(engine.facts)
        while True:
            self._handle_inbox(engine)
            self._step(engine)

    def _handle_inbox(self, engine: Engine) -> None:
        """Handle the received messages, but none that arrive meanwhile; wait for one when the engine is idle."""
        if not engine.busy:
            self._handle(engine, self._inbox.get())
        for _ in range(self._inbox.qsize()):
            self._handle(engine, self._inbox.get())

    def _step(self, engine: Engine) -> None:
        if not engine.busy:
            return
        self._step_began = time.monotonic()
        items = engine.step()
        self._step_began = None
        if items:  # the engine's outputs have the wire's tags and fields
            self._send(wire.Step(cast("tuple[wire.Output, ...]", tuple(items))))

    def _handle(self, engine: Engine, message: Any) -> None:
        """Handle one message. An error ends only that request."""
        self._step_began = time.monotonic()
        try:
            reply = self._reply(engine, message)
        except OllamaError as error:
            reply = wire.Failed.of(message.id, error)
        except Exception as error:  # the process boundary: the other requests must continue
            traceback.print_exc()
            reply = wire.Failed(message.id, f"internal error in the model runner: {error!r}")
        self._step_began = None
        if reply is not None:
            self._send(reply)

    def _reply(self, engine: Engine, message: Any) -> msgspec.Struct | None:
        match message:
            case wire.CompletionRequest() | wire.Embed() | wire.Rank() | wire.Tokenize():
                engine.submit(message)
                return None
            case wire.Cancel(id=id):
                engine.cancel(id)
                return None
            case wire.Detokenize(id=id, tokens=tokens):
                return wire.Detokenized(id, engine.detokenize(tokens))
            case wire.GetStats(id=id):
                return wire.StatsReply(id=id, stats={**engine.counters, "pid": os.getpid()})
        raise RunnerCrashed(f"the runner received an unexpected message: {type(message).__name__}")

    def _send(self, message: msgspec.Struct) -> None:
        data = wire.frame(message)
        try:
            with self._sending:
                self._channel.sendall(data)
        except OSError:
            os._exit(0)  # the server is gone

    # other threads

    def _watch_sigterm(self) -> None:
        """Wait for SIGTERM in a thread, because the main thread may be in native code for a long step."""
        woken, wakes = socket.socketpair()
        wakes.setblocking(False)
        signal.set_wakeup_fd(wakes.detach())
        signal.signal(signal.SIGTERM, lambda *_: None)

        def await_sigterm() -> None:
            woken.recv(1)
            self._end(128 + signal.SIGTERM)

        threading.Thread(target=await_sigterm, name="sigterm", daemon=True).start()

    def _end(self, status: int) -> NoReturn:
        """End the process as soon as a prefix that is being written to disk is complete."""
        if self._engine is not None:
            self._engine.flush(LAST_WRITE)
        os._exit(status)

    def _read(self) -> None:
        """Read until the server closes the socket, then end the process."""
        reader = wire.FrameReader(wire.ToRunner)
        status = 0
        try:
            while data := self._channel.recv(1 << 18):
                for message in reader.feed(data):
                    self._receive(message)
        except OSError:
            pass
        except RunnerCrashed as error:
            print(error, file=sys.stderr, flush=True)
            status = 1
        self._end(status)

    def _receive(self, message: Any) -> None:
        if isinstance(message, wire.Ping):
            began = self._step_began
            self._send(wire.Pong(0.0 if began is None else time.monotonic() - began))
            return
        self._inbox.put(message)
        if isinstance(message, wire.CompletionRequest) and not message.background and (engine := self._engine):
            engine.hurry()
        if isinstance(message, wire.Cancel) and (engine := self._engine):
            engine.cancel(message.id)  # also from this thread: it aborts what is being computed for that request


def run_with_stack(work: Callable[[], None], size: int) -> None:
    """Run ``work`` to its end in a thread with a stack of ``size`` bytes; in this thread if there is no memory for one.

    Raises what ``work`` raises.
    """
    failed: list[BaseException] = []

    def body() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    usual = threading.stack_size(size)
    thread = threading.Thread(target=body, name="engine", daemon=True)
    try:
        thread.start()
    except RuntimeError:
        work()
        return
    finally:
        threading.stack_size(usual)
    thread.join()
    if failed:
        raise failed[0]


def main(argv: Sequence[str]) -> None:
    RunnerProcess(confine.enter(argv)).run()


if __name__ == "__main__":
    main(sys.argv[1:])
