"""Random sequences of requests to the native routes, compared with a model of the store.

A real server and a registry run through sequences of create, show, copy, delete, push and pull, with requests of
hostile names and values between them. The model is two tables: name → system prompt, in the store and in the registry.
``HOSTILE_CASES`` sets the number of sequences.
"""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from support.chaos_registry import ChaosRegistry, chaos_registry
from support.ggufs import gguf
from support.hostile import CASES, HOSTILE, JSON_VALUES, NOT_OURS
from support.openapi import BY_ROUTE, check_reply, code_of
from support.servers import RestClient, RunningServer, standalone
from support.stores import check_sound

SEQUENCES = CASES or 10
STEPS = 20  # requests in a sequence
LOCAL = ("a", "A", "b:1", "mia/a", "B:1")
REMOTE = ("mia/a:latest", "mia/b:1")
SYSTEMS = ("", "one", "two\n\0 \u2028 {{ . }}", '"""', "</s>" * 50)
BAD_NAMES = (
    "", " ", ".", "..", "../a", "a/../b", "/a", "a/", "a:", ":a", "a b", "a\0", "\ud800", "é", "a:b:c", "a@b",
    "h/n/m/x:t", "-a", "x" * 300, "a:" + "t" * 300, "%2e%2e/a", "a\\b", "http://", "C:\\a", "{{ . }}", "a\n",
)  # fmt: skip
NAMES = st.sampled_from(LOCAL)
VALUES = st.sampled_from(HOSTILE) | JSON_VALUES
NAME_FIELDS = (
    ("POST /api/create", "model"), ("POST /api/create", "from"), ("POST /api/show", "model"),
    ("POST /api/copy", "source"), ("POST /api/copy", "destination"), ("DELETE /api/delete", "model"),
    ("POST /api/pull", "model"), ("POST /api/push", "model"),
)  # fmt: skip
OTHER_FIELDS = (
    "files", "adapters", "template", "license", "system", "parameters", "messages", "quantize", "renderer", "parser",
    "requires", "info", "capabilities", "unknown",
)  # fmt: skip


def key(name: str) -> str:
    """The complete name in lower case, as the model of the store knows it."""
    return (name if ":" in name.rpartition("/")[2] else f"{name}:latest").lower()


class StoreMachine(RuleBasedStateMachine):
    """One sequence; the server and the registry remain, their models are removed before the next one."""

    server: RunningServer
    registry: ChaosRegistry

    def __init__(self) -> None:
        super().__init__()
        self.stored: dict[str, str] = {}
        self.published: dict[str, str] = {}
        self.registry.manifests.clear()
        self.rest = RestClient(self.server)
        self.connection = http.client.HTTPConnection(urlsplit(self.server.url).netloc, timeout=120)

    def send(self, route: str, body: Any = None) -> tuple[int, Any]:
        """Status and the last part of a reply that is described and not an internal error."""
        operation = BY_ROUTE[route]
        self.connection.request(operation.method, operation.path, json.dumps(body).encode())
        reply = self.connection.getresponse()
        content = reply.read()
        about = f"{route} {body!r:.300} gives {reply.status} {content[:300]!r}"
        last: Any = None
        if content:
            try:
                (*_, last) = check_reply(operation, reply.status, reply.headers.get("Content-Type", ""), content)
            except Exception as error:
                raise AssertionError(f"{about}: {error}") from error
        assert reply.status < 500 or code_of(last) in NOT_OURS, about
        assert b'"internal_error"' not in content, about
        return reply.status, last

    @rule(name=NAMES, system=st.sampled_from(SYSTEMS))
    def create(self, name: str, system: str) -> None:
        body = {"model": name, "files": self.files(), "system": system}
        assert self.send("POST /api/create", body) == (200, {"status": "success"})
        self.stored[key(name)] = system

    @rule(name=NAMES, source=NAMES)
    def derive(self, name: str, source: str) -> None:
        status, last = self.send("POST /api/create", {"model": name, "from": source})
        if key(source) in self.stored:
            assert (status, last) == (200, {"status": "success"})
            self.stored[key(name)] = self.stored[key(source)]
        else:
            assert "error" in last

    @rule(name=NAMES)
    def show(self, name: str) -> None:
        status, shown = self.send("POST /api/show", {"model": name})
        if key(name) in self.stored:
            assert (status, shown.get("system", "")) == (200, self.stored[key(name)])
        else:
            assert status == 404

    @rule(source=NAMES, destination=NAMES)
    def copy(self, source: str, destination: str) -> None:
        self._copy(source, destination)

    @rule(name=NAMES)
    def delete(self, name: str) -> None:
        status, _ = self.send("DELETE /api/delete", {"model": name})
        assert (status == 200) == (self.stored.pop(key(name), None) is not None)
        assert status in (200, 404)

    @rule(name=NAMES, remote=st.sampled_from(REMOTE))
    def push(self, name: str, remote: str) -> None:
        """Copy a model to a name of the registry, push it and remove the copy."""
        target = f"{self.registry.host}/{remote}"
        if not self._copy(name, target):
            return
        status, last = self.send("POST /api/push", {"model": target, "insecure": True})
        assert (status, last) == (200, {"status": "success"})
        self.published[remote] = self.stored.pop(key(target))
        assert self.send("DELETE /api/delete", {"model": target})[0] == 200

    @rule(name=NAMES, remote=st.sampled_from(REMOTE))
    def pull(self, name: str, remote: str) -> None:
        """Pull a model, copy it to a local name and remove the one with the registry's name."""
        source = f"{self.registry.host}/{remote}"
        _, last = self.send("POST /api/pull", {"model": source, "insecure": True})
        if remote not in self.published:
            assert "error" in last
            return
        assert last == {"status": "success"}
        self.stored[key(source)] = self.published[remote]
        assert self._copy(source, name)
        assert self.send("DELETE /api/delete", {"model": source})[0] == 200
        del self.stored[key(source)]

    @rule(at=st.sampled_from(NAME_FIELDS), name=st.sampled_from(BAD_NAMES))
    def bad_name(self, at: tuple[str, str], name: str) -> None:
        """S1: a name that is not valid is refused, and the store is as before."""
        route, field = at
        valid = {"files": self.files()} if (route, field) == ("POST /api/create", "model") else {}
        base = {"model": "a", **valid, "source": "a", "destination": "b:1"}
        if field in ("source", "destination"):
            del base["model"]
        status, last = self.send(route, {**base, field: name})
        assert status in (400, 404) or "error" in last, f"{route}: {field} {name!r:.100} gives {status} {last}"

    @rule(field=st.sampled_from(OTHER_FIELDS), value=VALUES)
    def hostile_create(self, field: str, value: Any) -> None:
        """Any value of a field of create is used or refused; other models are as before."""
        body = {"model": "hostile", "files": self.files(), field: value}
        self.send("POST /api/create", body)
        status, _ = self.send("POST /api/show", {"model": "hostile"})
        assert self.send("DELETE /api/delete", {"model": "hostile"})[0] == status, body

    @rule(at=st.sampled_from(NAME_FIELDS), value=VALUES.filter(lambda value: not isinstance(value, str)))
    def hostile_type(self, at: tuple[str, str], value: Any) -> None:
        """A name that is not a string changes nothing."""
        route, field = at
        self.send(route, {field: value})

    @invariant()
    def the_same_names(self) -> None:
        status, tags = self.send("GET /api/tags")
        assert status == 200
        assert sorted(model["name"].lower() for model in tags["models"]) == sorted(self.stored)

    def teardown(self) -> None:
        try:
            check_sound(self.server.models)
        finally:
            for model in self.send("GET /api/tags")[1]["models"]:
                self.send("DELETE /api/delete", {"model": model["name"]})
            self.connection.close()

    def files(self) -> dict[str, str]:
        """The weights; they are uploaded again because deleting the last model that has them removes them."""
        return {"m.gguf": self.rest.add_blob(gguf())}

    def _copy(self, source: str, destination: str) -> bool:
        status, _ = self.send("POST /api/copy", {"source": source, "destination": destination})
        if key(source) == key(destination):  # has no effect, as in Ollama, whether the model exists or not
            assert status == 200
            return key(source) in self.stored
        if key(source) not in self.stored:
            assert status == 404
            return False
        assert status == 200
        self.stored[key(destination)] = self.stored[key(source)]
        return True


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[type[StoreMachine]]:
    with chaos_registry() as registry, standalone(tmp_path) as server:
        yield type("Machine", (StoreMachine,), {"server": server, "registry": registry})


@pytest.mark.timeout(60 + 30 * SEQUENCES)
def test_sequences_agree_with_a_model_of_the_store(machine: type[StoreMachine]) -> None:
    """S1, S30: sequences of requests with hostile names and values leave what a table of names predicts."""
    options = settings(max_examples=SEQUENCES, stateful_step_count=STEPS, deadline=None, database=None,
                       derandomize=not CASES, suppress_health_check=list(HealthCheck),
                       phases=[Phase.generate, Phase.shrink])  # fmt: skip
    run_state_machine_as_test(machine, settings=options)
