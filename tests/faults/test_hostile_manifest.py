"""A registry whose manifests claim absurd sizes: a real server refuses them, keeps its memory, and ends when asked."""

from __future__ import annotations

import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from support.chaos_registry import chaos_registry
from support.servers import RunningServer, standalone

MIB = 1 << 20
MAX_GROWTH = 100 * MIB  # bytes; without limits, 2**60 bytes grew by 30 MiB a second and did not end


def layers(count: int, size: Any) -> list[dict[str, Any]]:
    return [{"digest": f"sha256:{number:064x}", "size": size} for number in range(count)]


MANIFESTS = {
    "2**60": layers(1, 1 << 60),
    "10**3000": layers(1, 10**3000),
    "negative": layers(1, -1),
    "fraction": layers(1, 1e300),
    "many layers": layers(30_000, 10**12),
    "total": layers(30, 9_900_000_000_000),
    "one digest, two sizes": [{"digest": f"sha256:{7:064x}", "size": size} for size in (10, 1 << 40)],
}


def resident(pid: int) -> int:
    """The bytes of memory that a process uses."""
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("VmRSS")).split()[1]) * 1024


def last_line(server: RunningServer, name: str) -> dict[str, Any]:
    """The last line of the reply to a pull."""
    body = json.dumps({"model": name, "insecure": True}).encode()
    with urllib.request.urlopen(urllib.request.Request(f"{server.url}/api/pull", body), timeout=60) as reply:
        found: dict[str, Any] = json.loads(reply.read().splitlines()[-1])
        return found


@pytest.mark.parametrize("kind", MANIFESTS)
def test_sizes_of_a_hostile_registry(tmp_path: Path, kind: str) -> None:
    """S13: refused at once, with bounded memory; the server lives, and SIGTERM ends it in order."""
    with chaos_registry() as registry, standalone(tmp_path) as server:
        name = registry.publish("a/m:latest", model=b"x")
        body = json.loads(registry.manifests["/v2/a/m/manifests/latest"])
        body["layers"] = [{**body["layers"][0], **layer} for layer in MANIFESTS[kind]]
        registry.manifests["/v2/a/m/manifests/latest"] = json.dumps(body).encode()
        before = resident(server.pid)
        error = last_line(server, name)["error"]
        assert error and len(error) < 1000
        assert not registry.of("GET", "/blobs/"), "refused before anything is downloaded"
        assert resident(server.pid) - before < MAX_GROWTH
        with urllib.request.urlopen(f"{server.url}/api/tags", timeout=60) as reply:
            assert json.loads(reply.read()) == {"models": []}
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(60) == 0
        assert "Traceback" not in server.output()
