"""Anthropic's own tools: those that a client runs have names and arguments that its servers add to a request."""

from __future__ import annotations

from typing import Any

from ollama_nb.api.encode import go_quote
from ollama_nb.api.messages import Tool
from ollama_nb.errors import BadRequest

EXECUTED_BY_SERVER = ("web_search", "web_fetch", "code_execution", "tool_search_tool")
"""Beginnings of the types of tools that only Anthropic's servers run."""

_EDIT_COMMANDS = ("view", "create", "str_replace", "insert")


def client_tool(kind: str, name: str) -> Tool:
    """The tool of that type, such as ``bash_20250124``, under the name that the client gives it. Raises BadRequest."""
    version = kind.rpartition("_")[2]
    if kind.startswith("bash_"):
        return _function(name or "bash", "Run a command in a persistent bash session.", _BASH)
    if kind.startswith("text_editor_"):
        text = "View, create and edit text files. A path is absolute."
        return _function(name or "str_replace_based_edit_tool", text, _editor(version), "command", "path")
    raise BadRequest(
        f"tools: the type {go_quote(kind[:64])} is not supported: describe the tool with a name and an input_schema",
        field="tools",
    )


_BASH = {
    "command": {"type": "string", "description": "The command to run. Required unless restart is true."},
    "restart": {"type": "boolean", "description": "True restarts the session."},
}


def _editor(version: str) -> dict[str, Any]:
    """The arguments of an editor of that version, a date; until the beginning of 2025 it could undo an edit."""
    commands = _EDIT_COMMANDS if version >= "20250429" else (*_EDIT_COMMANDS, "undo_edit")
    inserted = "insert_text" if version >= "20250728" else "new_str"
    return {
        "command": {"type": "string", "enum": list(commands), "description": "What to do."},
        "path": {"type": "string", "description": "The file, or for view also a folder."},
        "file_text": {"type": "string", "description": "create: the content of the new file."},
        "old_str": {"type": "string", "description": "str_replace: the text to replace; it occurs once in the file."},
        "new_str": {"type": "string", "description": "str_replace: the new text."},
        "insert_line": {"type": "integer", "description": "insert: the line after which to insert; 0 for the start."},
        inserted: {"type": "string", "description": f"{_users(inserted)}: the new text."},
        "view_range": {
            "type": "array",
            "items": {"type": "integer"},
            "description": "view: first and last line to show, from 1; a last line of -1 is the end.",
        },
    }


def _users(argument: str) -> str:
    return "insert" if argument == "insert_text" else "str_replace and insert"


def _function(name: str, description: str, properties: dict[str, Any], *required: str) -> Tool:
    schema = {"type": "object", "properties": properties, "required": list(required)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": schema}}
