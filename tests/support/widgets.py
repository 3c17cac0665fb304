"""What browser tests do with the widgets: find their parts, run single cells, ask the server."""

from __future__ import annotations

from typing import Any

from support.lab import TOKEN, Lab

CHAT = "from ollama_nb.notebook.widgets import Chat\n"
ENDLESS = 'dict(type="array", items=dict(type="string"), minItems=5000)'
"""A form that keeps even a small model busy for minutes."""


def message_box(page: Any) -> Any:
    return page.get_by_label("Message", exact=True)


def say(page: Any, text: str) -> None:
    message_box(page).fill(text)
    message_box(page).press("Enter")


def replies(page: Any) -> Any:
    """The figures below each finished answer."""
    return page.locator(".onb-exchange[aria-busy=false] .onb-figures")


def run_cell(page: Any, number: int) -> None:
    """Run one cell; do not wait for it."""
    page.evaluate(
        """number => {
            const app = window.jupyterapp, notebook = app.shell.currentWidget.content;
            notebook.activeCellIndex = number;
            notebook.deselectAll();
            app.commands.execute('notebook:run-cell');
        }""",
        number,
    )


_RUNS = "number => window.jupyterapp.shell.currentWidget.content.widgets[number].model.executionState === 'running'"


def runs(page: Any, number: int) -> bool:
    return bool(page.evaluate(_RUNS, number))


def until_runs(page: Any, number: int) -> None:
    page.wait_for_function(_RUNS, arg=number)


def queue(page: Any, lab: Lab) -> list[Any]:
    """What the server that the page came from works on."""
    reply = page.request.get(f"{lab.url}ollama/api/queue", headers={"Authorization": f"token {TOKEN}"})
    return list(reply.json()["requests"])
