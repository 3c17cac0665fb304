"""A real Jupyter server with the extension, shared by the tests of a file that do not change it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.servers import RunningServer, jupyter


@pytest.fixture(scope="module")
def token_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    with jupyter(tmp_path_factory.mktemp("jupyter"), base_url="/user/x/") as server:
        yield server
