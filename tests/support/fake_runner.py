"""A scripted child process that speaks the runner's wire protocol and fails on command.

Started as ``python fake_runner.py FD PARENT_PID``. ``EngineConfig.path`` selects what it does at first:
``ok`` · ``fail:TEXT`` · ``die:SIGNAL`` · ``hang`` · ``chatter`` (log forever, never load) · ``flood:MEGABYTES`` (of
output, then load) · ``garbage`` · ``exit:STATUS:LAST WORDS``. Anything else loads.

A prompt is a list of words. Each is sent as one piece of text, except the commands
``!die:SIGNAL`` · ``!garbage`` · ``!close`` · ``!wait`` (until cancelled) · ``!flood:MEGABYTES`` · ``!fail:STATUS`` ·
``!length`` (end with that reason) · ``!stop`` (stop this process: SIGSTOP).
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import time
from typing import Any

import msgspec

from ollama_nb.errors import from_code
from ollama_nb.runner import confine, wire


class FakeRunner:
    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.reader = wire.FrameReader(wire.ToRunner)
        self.inbox: list[Any] = []
        self.streams: dict[int, list[str]] = {}
        self.waiting: set[int] = set()
        self.counts: dict[int, int] = {}
        self.cancels = 0

    def send(self, message: msgspec.Struct) -> None:
        self.channel.sendall(wire.frame(message))

    def receive(self, *, block: bool) -> None:
        if not block and not select.select([self.channel], [], [], 0)[0]:
            return
        data = self.channel.recv(1 << 16)
        if not data:
            os._exit(0)
        self.inbox += self.reader.feed(data)

    def run(self) -> None:
        while not self.inbox:
            self.receive(block=True)
        self.load(self.inbox.pop(0))
        while True:
            self.receive(block=not self.streams.keys() - self.waiting)
            while self.inbox:
                self.answer(self.inbox.pop(0))
            self.step()

    def load(self, load: wire.EngineConfig) -> None:
        self.loaded = load
        word, _, rest = load.path.partition(":")
        if word == "fail":
            self.send(wire.LoadFailed(rest))
            self.receive(block=True)
        elif word == "hang":
            print("loading tensors", file=sys.stderr, flush=True)
            signal.pause()
        elif word == "chatter":
            while True:
                print("still loading", file=sys.stderr, flush=True)
                time.sleep(0.02)
        elif word == "exit":
            status, _, words = rest.partition(":")
            print(words, file=sys.stderr, flush=True)
            os._exit(int(status))
        else:
            self.command(0, word, rest)
        self.send(
            wire.EngineFacts(
                n_ctx=load.n_ctx, n_ctx_train=512, n_seq=load.n_seq, n_vocab=512, n_embd=4, size=1000, size_vram=0,
                add_bos=True, add_eos=False, bos="<s>", eos="</s>", pooling="none", load_seconds=0.01, build="fake",
            )
        )  # fmt: skip

    def answer(self, message: Any) -> None:
        match message:
            case wire.CompletionRequest():
                self.streams[message.id] = message.prompt.split()
                self.counts[message.id] = 0
            case wire.Cancel(id=id):
                self.cancels += 1
                if id in self.streams:
                    self.finish(id, "cancelled")
            case wire.Embed():
                self.send(wire.Embedded(message.id, b"\0\0\x80\x3f" * 4 * len(message.inputs), 4, 3, 0.0))
            case wire.Tokenize():
                tokens = tuple(tuple(text.encode()) for text in message.texts)
                counts = tuple(len(text) for text in tokens)
                self.send(wire.Tokens(id=message.id, tokens=() if message.count_only else tokens, counts=counts))
            case wire.Detokenize():
                self.send(wire.Detokenized(message.id, bytes(message.tokens).decode()))
            case wire.GetStats():
                self.send(wire.StatsReply(id=message.id, stats={"busy": len(self.streams), "cancels": self.cancels,
                                                                "env": dict(os.environ)}))  # fmt: skip
            case wire.Ping():
                self.send(wire.Pong())

    def step(self) -> None:
        items: list[wire.TextOutput | wire.Finished | wire.Failed] = []
        for id, words in list(self.streams.items()):
            if id in self.waiting:
                continue
            if not words:
                self.finish(id, "stop")
                continue
            word = words.pop(0)
            if word.startswith("!"):
                self.command(id, *word[1:].partition(":")[::2])
            else:
                self.counts[id] += 1
                items.append(wire.TextOutput(id, word + " ", output_tokens=self.counts[id]))
        if items:
            self.send(wire.Step(tuple(items)))

    def command(self, id: int, name: str, value: str) -> None:
        match name:
            case "die":
                os.kill(os.getpid(), getattr(signal, value))
            case "stop":
                os.kill(os.getpid(), signal.SIGSTOP)
            case "garbage":
                self.channel.sendall(b"\x05\0\0\0\xc1\xc1\xc1\xc1\xc1")
            case "close":
                self.channel.shutdown(socket.SHUT_RDWR)
                signal.pause()
            case "flood":
                line = b"x" * 1023 + b"\n"
                for _ in range(int(value)):
                    os.write(2, line * 1024)
            case "wait":
                self.waiting.add(id)
            case "fail":
                del self.streams[id]
                self.send(wire.Step((wire.Failed.of(id, from_code("", f"failed with {value}", int(value))),)))
            case "length":
                self.finish(id, "length")

    def finish(self, id: int, reason: str) -> None:
        del self.streams[id]
        self.waiting.discard(id)
        self.send(wire.Step((wire.Finished(id=id, reason=reason, output_tokens=self.counts.pop(id)),)))


if __name__ == "__main__":
    FakeRunner(confine.enter(sys.argv[1:])).run()
