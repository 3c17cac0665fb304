"""The slash commands: ``/set``, ``/show``, ``/load``, ``/save``, ``/clear``, ``/list``, ``/?``, ``/bye``.

As in Ollama the beginning of a line decides, so ``/listen`` is ``/list``.
"""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from ollama_nb.api.names import ModelName
from ollama_nb.cli.session import ReplSession
from ollama_nb.errors import BadRequest, InvalidName, NotFound, OllamaError
from ollama_nb.modelfile import typed
from ollama_nb.verbs.actions import list_models
from ollama_nb.verbs.present import list_table, parameter_lines, show_screen

HELP = """Available Commands:
  /set            Set session variables
  /show           Show model information
  /load <model>   Load a session or model
  /save <model>   Save your current session
  /clear          Clear session context
  /bye            Exit
  /?, /help       Help for a command
  /? shortcuts    Help for keyboard shortcuts

Use \"\"\" to begin a multi-line message.
"""
FILES_HELP = "Use {path} to include .jpg, .png, .webp images, or .wav audio files.\n"
SET_HELP = """Available Commands:
  /set parameter ...     Set a parameter
  /set system <string>   Set system message
  /set history           Enable history
  /set nohistory         Disable history
  /set wordwrap          Enable wordwrap
  /set nowordwrap        Disable wordwrap
  /set format json       Enable JSON mode
  /set noformat          Disable formatting
  /set verbose           Show LLM stats
  /set quiet             Disable LLM stats
  /set think             Enable thinking
  /set nothink           Disable thinking

"""
PARAMETER_HELP = """Available Parameters:
  /set parameter seed <int>             Random number seed
  /set parameter num_predict <int>      Max number of tokens to predict
  /set parameter top_k <int>            Pick from top k num of tokens
  /set parameter top_p <float>          Pick token based on sum of probabilities
  /set parameter min_p <float>          Pick token based on top token probability * min_p
  /set parameter num_ctx <int>          Set the context size
  /set parameter temperature <float>    Set creativity level
  /set parameter repeat_penalty <float> How strongly to penalize repetitions
  /set parameter repeat_last_n <int>    Set how far back to look for repetitions
  /set parameter num_gpu <int>          The number of layers to send to the GPU
  /set parameter stop <string> <string> ...   Set the stop parameters

"""
SHOW_HELP = """Available Commands:
  /show info         Show details for this model
  /show license      Show model license
  /show modelfile    Show Modelfile for this model
  /show parameters   Show parameters for this model
  /show system       Show system message
  /show template     Show prompt template

"""
SHORTCUTS_HELP = """Available keyboard shortcuts:
  Ctrl + a            Move to the beginning of the line (Home)
  Ctrl + e            Move to the end of the line (End)
   Alt + b            Move back (left) one word
   Alt + f            Move forward (right) one word
  Ctrl + k            Delete the sentence after the cursor
  Ctrl + u            Delete the sentence before the cursor
  Ctrl + w            Delete the word before the cursor

  Ctrl + l            Clear the screen
  Ctrl + g            Open the text in an editor
  Ctrl + c            Stop the model from responding
  Ctrl + d            Exit ollama (/bye)

"""
_TOPICS = {"set": SET_HELP, "show": SHOW_HELP, "shortcut": SHORTCUTS_HELP, "shortcuts": SHORTCUTS_HELP}
_NO_TEXT = {
    "license": "No license was specified for this model.",
    "template": "No prompt template was specified for this model.",
}


def handle(line: str, session: ReplSession, keep_history: Callable[[bool], None]) -> bool:
    """Run a command and return whether the line is one. ``keep_history`` switches the history file on and off."""
    words = line.split()
    if line.startswith("/list"):
        sys.stdout.write(_listed(session, words[1] if len(words) > 1 else ""))
    elif line.startswith("/load"):
        _load(session, words)
    elif line.startswith("/save"):
        _save(session, words)
    elif line.startswith("/clear"):
        session.clear()
        print("Cleared session context")
    elif line.startswith("/set"):
        _set(session, line, words, keep_history)
    elif line.startswith("/show"):
        _show(session, words)
    elif line.startswith(("/?", "/help")):
        _help(session, words)
    else:
        return False
    return True


def leaves(line: str) -> bool:
    """Whether a line ends the session."""
    return line.startswith(("/bye", "/exit"))


def unknown(line: str) -> str:
    """The message for an unknown command."""
    return f"Unknown command '{line.split()[0]}'. Type /? for help"


def _listed(session: ReplSession, prefix: str) -> str:
    return list_table(list_models(session.client, prefix)["models"])


def _load(session: ReplSession, words: list[str]) -> None:
    if len(words) != 2:
        print("Usage:\n  /load <modelname>")
        return
    model = words[1]
    before = copy.copy(session)
    print(f"Loading model '{model}'")
    try:
        session.load(model)
    except NotFound:
        print(f"Couldn't find model '{model}'")
        vars(session).update(vars(before))
    except OllamaError as error:
        if not session.is_about_thinking(error):
            raise
        print(f"error: {error.message}")


def _save(session: ReplSession, words: list[str]) -> None:
    if len(words) != 2:
        print("Usage:\n  /save <modelname>")
        return
    try:
        ModelName.parse(words[1])
        session.save(words[1])
    except InvalidName:
        print(f"error: The model name '{words[1]}' is invalid")
    else:
        print(f"Created new model '{words[1]}'")


def _set(session: ReplSession, line: str, words: list[str], keep_history: Callable[[bool], None]) -> None:
    what, rest = (words[1], words[2:]) if len(words) > 1 else ("", [])
    if what == "parameter":
        _set_parameter(session, rest)
    elif what == "system" and rest:
        session.set_system(line.split(maxsplit=2)[2].strip())
        print("Set system message.")
    elif what in ("", "system"):
        sys.stderr.write(SET_HELP)
    elif what in ("history", "nohistory"):
        keep_history(what == "history")
    elif what == "format" and rest != ["json"]:
        print("Invalid or missing format. For 'json' mode use '/set format json'")
    elif (message := _switch(session, what, rest)) is not None:
        print(message)
    else:
        print(f"Unknown command '/set {what}'. Type /? for help")


def _switch(session: ReplSession, what: str, rest: list[str]) -> str | None:
    """Change a setting and return the message for it; None for a setting that does not exist."""
    if what in ("wordwrap", "nowordwrap"):
        session.wordwrap = what == "wordwrap"
    elif what in ("verbose", "quiet"):
        session.verbose = what == "verbose"
    elif what == "format":
        session.format = "json"
        return "Set format to 'json' mode."
    elif what == "noformat":
        session.format = None
        return "Disabled format."
    elif what in ("think", "nothink"):
        session.think_chosen = True
        session.think = (rest[0] if rest else True) if what == "think" else False
        _warn_about_thinking(session)
        if session.think is not False and rest:
            return f"Set 'think' mode to '{rest[0]}'."
    else:
        return None
    return f"Set '{what}' mode."


def _warn_about_thinking(session: ReplSession) -> None:
    if not session.think:
        return
    if "thinking" not in (session.client.show(session.model).get("capabilities") or ()):
        print(f'warning: model "{session.model}" does not support thinking output', file=sys.stderr)


def _set_parameter(session: ReplSession, rest: list[str]) -> None:
    if len(rest) < 2:
        sys.stderr.write(PARAMETER_HELP)
        return
    name, *values = rest
    try:
        value = typed(name, values[0])
    except BadRequest as error:
        print(f"Couldn't set parameter: {json.dumps(error.message, ensure_ascii=False)}")
        return
    session.options[name] = values if isinstance(value, list) else value
    print(f"Set parameter '{name}' to '{', '.join(values)}'")


def _show(session: ReplSession, words: list[str]) -> None:
    what = words[1] if len(words) > 1 else ""
    if not what:
        sys.stderr.write(SHOW_HELP)
        return
    if what not in {"info", "license", "modelfile", "parameters", "system", "template"}:
        print(f"Unknown command '/show {what}'. Type /? for help")
        return
    info = session.show()
    if what == "info":
        sys.stderr.write(show_screen(info))
    elif what == "parameters":
        print(_parameters(info, session.options))
    elif what == "system":
        text = session.system or info.get("system") or ""
        print(f"{text}\n" if text else "No system message was specified for this model.")
    else:
        print(info.get(what) or _NO_TEXT.get(what, ""))


def _parameters(info: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    own = parameter_lines(info)
    lines = ["Model defined parameters:"]
    lines += [f"  {line}" for line in own] or ["  No additional parameters were specified for this model."]
    lines.append("")
    if options:
        lines.append("User defined parameters:")
        lines += [f"  {name:<30} {_plain(value)}" for name, value in options.items()]
        lines.append("")
    return "\n".join(lines)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return f"[{' '.join(map(str, value))}]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _help(session: ReplSession, words: list[str]) -> None:
    if len(words) > 1:
        sys.stderr.write(_TOPICS.get(words[1].removeprefix("/"), ""))
    else:
        sys.stderr.write(HELP + (FILES_HELP.format(path="/path/to/file") if session.takes_files else "") + "\n")
