"""Time small requests to a server: ``probe.py URL`` calls ``GET URL/livez`` until its standard input closes.

A process of its own, so that the client of the measured streams does not delay it. Prints an empty line when it begins,
and at the end the times as a JSON list, in seconds. The server's event loop answers ``/livez`` without any other work:
the time contains the delay of the loop, and those of the system's scheduler, of this process and of the connection.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time
from urllib.parse import urlsplit

INTERVAL = 0.01  # seconds between two requests


def main(url: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    times: list[float] = []
    print(flush=True)
    while not select.select([sys.stdin], [], [], INTERVAL)[0]:
        begun = time.perf_counter()
        connection.request("GET", "/livez")
        connection.getresponse().read()
        times.append(time.perf_counter() - begun)
    print(json.dumps(times))


if __name__ == "__main__":
    main(sys.argv[1])
