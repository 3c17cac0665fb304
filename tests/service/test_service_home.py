"""Only the user can read the folder of this program's state, whichever part creates it first."""

from __future__ import annotations

import asyncio
import stat
from pathlib import Path

from ollama_nb.service.service import Service
from ollama_nb.settings import Settings


def test_a_service_makes_its_home_for_its_user_only(home: Path) -> None:
    settings = Settings.from_env()

    async def start_and_close() -> None:
        service = Service(settings)
        await service.start()
        await service.close()

    asyncio.run(start_and_close())
    assert stat.S_IMODE(settings.home.stat().st_mode) == 0o700
