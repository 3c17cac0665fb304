"""Lists and details display themselves as the terminal program prints them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from ollama_nb.notebook.listing import BatchesFrame, ModelsFrame, RunningFrame
from ollama_nb.notebook.tables import ModelDetails


def stamp(seconds: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds)).isoformat()


def test_list() -> None:
    rows = [
        {"name": "a:latest", "digest": "0" * 64, "size": 98_000_000, "modified_at": stamp(-7200)},
        {"name": "long-name:7b", "digest": "1" * 64, "size": 1234, "modified_at": "0001-01-01T00:00:00Z"},
    ]
    assert repr(ModelsFrame.of(rows)).splitlines() == [
        "NAME            ID              SIZE      MODIFIED",
        "a:latest        000000000000    98 MB     2 hours ago",
        "long-name:7b    111111111111    1.2 KB    Never",
    ]
    assert '<td style="text-align: left">a:latest</td>' in (ModelsFrame.of(rows)._repr_html_() or "")
    assert repr(ModelsFrame.of([])) == "NAME    ID    SIZE    MODIFIED"


@pytest.mark.parametrize(
    ("size", "vram", "processor"),
    [(10, 0, "100% CPU"), (10, 10, "100% GPU"), (100, 25, "75%/25% CPU/GPU"), (1, 2, "Unknown")],
)
def test_ps(size: int, vram: int, processor: str) -> None:
    row = {"name": "a", "digest": "", "size": size, "size_vram": vram, "context_length": 4096}
    cells = {
        until: RunningFrame.of([{**row, "expires_at": until}]).rows()[0]
        for until in (stamp(295), stamp(-1), stamp(1e10))
    }
    assert [cell[3:] for cell in cells.values()] == [
        (processor, "4096", "4 minutes from now"),
        (processor, "4096", "Stopping..."),
        (processor, "4096", "Forever"),
    ]


def test_markup_in_names_is_text() -> None:
    assert "<script>" not in (ModelsFrame.of([{"name": "<script>", "size": 0}])._repr_html_() or "")
    assert "<b>" not in ModelDetails(capabilities=["<b>"], license="<b>")._repr_html_()


def test_details() -> None:
    shown = ModelDetails(
        model_info={"general.architecture": "llama", "llama.context_length": 2048, "llama.embedding_length": 576},
        details={"parameter_size": "134.52M", "quantization_level": "Q4_1"},
        capabilities=["completion"],
        parameters='stop                           "<|im_end|>"\ntemperature                    0\n',
        system="You are\n\nhelpful\nand more",
    )
    assert repr(shown).splitlines() == [
        "  Model",
        "    architecture        llama",
        "    parameters          134.52M",
        "    context length      2048",
        "    embedding length    576",
        "    quantization        Q4_1",
        "",
        "  Capabilities",
        "    completion",
        "",
        "  Parameters",
        '    stop           "<|im_end|>"',
        "    temperature    0",
        "",
        "  System",
        "    You are",
        "    helpful",
        "    ...",
    ]
    assert shown["model_info"]["llama.context_length"] == 2048


def test_batches() -> None:
    row = {"id": "batch_1", "model": "小", "endpoint": "/v1/embeddings", "status": "in_progress", "total": 9}
    frame = BatchesFrame.of([{**row, "completed": 4, "failed": 1, "created_at": stamp(-7200)}])
    assert frame.rows() == [("batch_1", "小", "/v1/embeddings", "in_progress", "5/9", "1", "2 hours ago")]
    assert repr(BatchesFrame.of([])).split()[0] == "ID"
