"""The programs that ``ollama launch`` starts, as data: where each is found and how it is directed to our server.

A card's ``setup`` is a pure function from server and model to environment variables, arguments and generated files; a
launch changes no file of the user. ``own_files`` are changes of the program's own configuration, made only by
``--config`` and undone by ``--restore``. Keys are passed in environment variables or in files of mode 0600, never as
arguments, because every user of a machine can read the command lines of its processes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ollama_nb.errors import BadRequest
from ollama_nb.settings import NO_KEY, openai_variables

PROVIDER = "ollama"  # the name of our entry among a program's providers
CODEX_PROFILE = "ollama-launch"
_KEY_VARIABLE = "OLLAMA_LAUNCH_KEY"

Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class AgentServer:
    """The server that a program is to use."""

    url: str
    key: str = ""

    @property
    def openai_url(self) -> str:
        """The base address of the OpenAI-compatible API."""
        return f"{self.url}/v1"

    @property
    def sent_key(self) -> str:
        """The key, or a placeholder for programs that insist on one."""
        return self.key or NO_KEY


@dataclass(frozen=True, slots=True)
class AgentModel:
    """The model that a program is to use. ``context``: tokens of one conversation."""

    name: str
    context: int = 0
    vision: bool = False


@dataclass(frozen=True, slots=True)
class GeneratedFile:
    """A JSON file in our folder for the program: the user's file at ``base`` below the home folder, changed."""

    change: Document
    base: str = ""


@dataclass(frozen=True, slots=True)
class Setup:
    """What a launch passes to the program.

    ``files``: their names → contents. ``without_proxy``: the program ignores NO_PROXY and would send the requests for
    this machine to the proxy, too.
    """

    env: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...] = ()
    files: Mapping[str, GeneratedFile] = field(default_factory=dict)
    without_proxy: bool = False


@dataclass(frozen=True, slots=True)
class OwnFile:
    """A change of a program's own file: the path below the home folder, and the new text for the present one.

    ``folder_variable`` names the environment variable that replaces the first part of the path.
    """

    path: str
    change: Callable[[str], str]
    folder_variable: str = ""

    def locate(self, env: Mapping[str, str], home: Path) -> Path:
        """The file's path for a user with this environment and home folder."""
        first, _, rest = self.path.partition("/")
        folder = env.get(self.folder_variable, "") if self.folder_variable else ""
        return Path(folder) / rest if folder else home / first / rest


SetupFunction = Callable[[AgentServer, AgentModel, Path], Setup]
OwnFilesFunction = Callable[[AgentServer, AgentModel], tuple[OwnFile, ...]]


@dataclass(frozen=True, slots=True)
class Program:
    """One program: its command, how to install it, how it is set up.

    ``places``: paths below the home folder where its installer puts the command, tried after ``PATH``. ``setup`` gets
    the folder that will hold its generated files. ``own_files`` is None for a program that reads its provider from the
    environment only. ``afterwards``: how to start the program with what ``--config`` wrote, if not by its name alone.
    """

    name: str
    title: str
    install: str
    setup: SetupFunction
    own_files: OwnFilesFunction | None = None
    places: tuple[str, ...] = ()
    afterwards: str = ""


def merge(present: Mapping[str, Any], change: Mapping[str, Any]) -> Document:
    """``present`` with the values of ``change``; objects are merged, everything else is replaced."""
    merged = dict(present)
    for key, value in change.items():
        before = merged.get(key)
        nested = isinstance(value, Mapping) and isinstance(before, Mapping)
        merged[key] = merge(before, value) if nested else value  # type: ignore[arg-type]
    return merged


def _json_file(path: str, change: Document, folder_variable: str = "") -> OwnFile:
    def apply(text: str) -> str:
        try:
            present = json.loads(text) if text.strip() else {}
        except ValueError as error:
            raise BadRequest(f"~/{path} is not valid JSON ({error}): correct it, or move it away") from None
        if not isinstance(present, dict):
            raise BadRequest(f"~/{path} is not a JSON object: correct it, or move it away")
        return json.dumps(merge(present, change), indent=2, ensure_ascii=False) + "\n"

    return OwnFile(path, apply, folder_variable)


# Claude Code: the Anthropic API


def _claude_env(server: AgentServer, model: AgentModel) -> dict[str, str]:
    names = ("ANTHROPIC_MODEL", "ANTHROPIC_SMALL_FAST_MODEL", "CLAUDE_CODE_SUBAGENT_MODEL",
             *(f"ANTHROPIC_DEFAULT_{size}_MODEL" for size in ("OPUS", "SONNET", "HAIKU")))  # fmt: skip
    window = {"CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(model.context)} if model.context else {}
    return {
        "ANTHROPIC_BASE_URL": server.url,
        "ANTHROPIC_AUTH_TOKEN": server.sent_key,
        "ANTHROPIC_API_KEY": "",  # a key of the user's is for Anthropic's own server
        **dict.fromkeys((f"CLAUDE_CODE_USE_{cloud}" for cloud in ("BEDROCK", "VERTEX", "FOUNDRY")), ""),
        **dict.fromkeys(names, model.name),
        **window,
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",  # it differs in every session, so that no prompt prefix would be reused
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "CLAUDE_CODE_DISABLE_FEEDBACK_SURVEY": "1",
        "DISABLE_AUTOUPDATER": "1",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
    }


def _set_up_claude(server: AgentServer, model: AgentModel, _folder: Path) -> Setup:
    return Setup(_claude_env(server, model))


def _claude_files(server: AgentServer, model: AgentModel) -> tuple[OwnFile, ...]:
    return (_json_file(".claude/settings.json", {"env": _claude_env(server, model)}, "CLAUDE_CONFIG_DIR"),)


# Codex: the Responses API


def _codex_values(server: AgentServer, model: AgentModel) -> dict[str, Any]:
    provider = f"model_providers.{CODEX_PROFILE}"
    window = {"model_context_window": model.context} if model.context else {}
    return {
        "model": model.name,
        "model_provider": CODEX_PROFILE,
        **window,
        f"{provider}.name": "Ollama",
        f"{provider}.base_url": server.openai_url,
        f"{provider}.wire_api": "responses",
        "check_for_update_on_startup": False,
        "analytics.enabled": False,
    }


def _toml(value: str | int | bool) -> str:
    return json.dumps(value, ensure_ascii=False)


def _set_up_codex(server: AgentServer, model: AgentModel, _folder: Path) -> Setup:
    values = {**_codex_values(server, model), f"model_providers.{CODEX_PROFILE}.env_key": _KEY_VARIABLE}
    args = [part for key, value in values.items() for part in ("-c", f"{key}={_toml(value)}")]
    return Setup({_KEY_VARIABLE: server.sent_key}, tuple(args))


def _codex_files(server: AgentServer, model: AgentModel) -> tuple[OwnFile, ...]:
    token = {f"model_providers.{CODEX_PROFILE}.experimental_bearer_token": server.sent_key}
    lines = [f"{key} = {_toml(value)}" for key, value in (_codex_values(server, model) | token).items()]
    text = "\n".join(lines) + "\n"
    return (OwnFile(f".codex/{CODEX_PROFILE}.config.toml", lambda _present: text, "CODEX_HOME"),)


# OpenCode, Qwen Code, Cline: OpenAI's chat API


def _opencode_config(server: AgentServer, model: AgentModel, key: str) -> Document:
    limit = {"limit": {"context": model.context, "output": model.context // 4}} if model.context else {}
    inputs = ["text", "image"] if model.vision else ["text"]
    entry = {"name": model.name, "tool_call": True, "modalities": {"input": inputs, "output": ["text"]}, **limit}
    return {
        "$schema": "https://opencode.ai/config.json",
        "provider": {
            PROVIDER: {
                "npm": "@ai-sdk/openai-compatible",
                "name": "Ollama",
                "options": {"baseURL": server.openai_url, "apiKey": key},
                "models": {model.name: entry},
            }
        },
        "model": f"{PROVIDER}/{model.name}",
        "small_model": f"{PROVIDER}/{model.name}",  # otherwise titles are made by a model in the cloud
        "autoupdate": False,
        "share": "disabled",
    }


def _set_up_opencode(server: AgentServer, model: AgentModel, _folder: Path) -> Setup:
    config = _opencode_config(server, model, f"{{env:{_KEY_VARIABLE}}}")
    return Setup(
        {
            "OPENCODE_CONFIG_CONTENT": json.dumps(config, ensure_ascii=False),
            _KEY_VARIABLE: server.sent_key,
            "OPENCODE_DISABLE_AUTOUPDATE": "1",
            "OPENCODE_DISABLE_MODELS_FETCH": "1",
        }
    )


def _opencode_files(server: AgentServer, model: AgentModel) -> tuple[OwnFile, ...]:
    config = _opencode_config(server, model, server.sent_key)
    return (_json_file(".config/opencode/opencode.json", config, "XDG_CONFIG_HOME"),)


_QWEN_DEFAULTS: Document = {"privacy": {"usageStatisticsEnabled": False}, "general": {"enableAutoUpdate": False}}


def _qwen_env(server: AgentServer, model: AgentModel) -> dict[str, str]:
    return {**openai_variables(server.url, server.key), "OPENAI_MODEL": model.name}


def _set_up_qwen(server: AgentServer, model: AgentModel, folder: Path) -> Setup:
    file = "system-defaults.json"
    env = {**_qwen_env(server, model), "QWEN_CODE_SYSTEM_DEFAULTS_PATH": str(folder / file)}
    files = {file: GeneratedFile(_QWEN_DEFAULTS)}
    return Setup(env, ("--auth-type", "openai", "--model", model.name), files, without_proxy=True)


def _qwen_files(server: AgentServer, model: AgentModel) -> tuple[OwnFile, ...]:
    settings = {
        **_QWEN_DEFAULTS,
        "env": _qwen_env(server, model),
        "security": {"auth": {"selectedType": "openai", "baseUrl": server.openai_url, "apiKey": server.sent_key}},
        "model": {"name": model.name},
    }
    return (_json_file(".qwen/settings.json", settings),)


def _cline_providers(server: AgentServer, model: AgentModel) -> Document:
    provider = "openai-compatible"
    settings = {"provider": provider, "model": model.name, "baseUrl": server.openai_url, "apiKey": server.sent_key}
    entry = {"settings": settings, "updatedAt": "1970-01-01T00:00:00.000Z", "tokenSource": "manual"}
    return {"version": 1, "lastUsedProvider": provider, "modes": {}, "providers": {provider: entry}}


_CLINE_SETTINGS = ".cline/data/settings"


def _set_up_cline(server: AgentServer, model: AgentModel, folder: Path) -> Setup:
    providers, settings = "providers.json", "global-settings.json"
    env = {
        "CLINE_PROVIDER_SETTINGS_PATH": str(folder / providers),
        "CLINE_GLOBAL_SETTINGS_PATH": str(folder / settings),
        "CLINE_NO_AUTO_UPDATE": "1",
    }
    return Setup(
        env,
        files={
            providers: GeneratedFile(_cline_providers(server, model), f"{_CLINE_SETTINGS}/{providers}"),
            settings: GeneratedFile({"telemetryOptOut": True}, f"{_CLINE_SETTINGS}/{settings}"),
        },
    )


def _cline_files(server: AgentServer, model: AgentModel) -> tuple[OwnFile, ...]:
    return (_json_file(f"{_CLINE_SETTINGS}/providers.json", _cline_providers(server, model), "CLINE_DIR"),)


# Copilot CLI: the Responses API


def _set_up_copilot(server: AgentServer, model: AgentModel, _folder: Path) -> Setup:
    limits: dict[str, str] = {}
    if model.context:
        output = model.context // 4
        limits = {"COPILOT_PROVIDER_MAX_PROMPT_TOKENS": str(model.context - output),
                  "COPILOT_PROVIDER_MAX_OUTPUT_TOKENS": str(output)}  # fmt: skip
    return Setup(
        {
            "COPILOT_PROVIDER_TYPE": "openai",
            "COPILOT_PROVIDER_BASE_URL": server.openai_url,
            "COPILOT_PROVIDER_BEARER_TOKEN": server.sent_key,
            "COPILOT_PROVIDER_WIRE_API": "responses",
            "COPILOT_MODEL": model.name,
            "COPILOT_AUTO_UPDATE": "false",
            **limits,
        }
    )


PROGRAMS = {
    program.name: program
    for program in (
        Program(
            "claude",
            "Claude Code",
            "npm install -g @anthropic-ai/claude-code",
            _set_up_claude,
            _claude_files,
            (".local/bin/claude", ".claude/local/claude"),
        ),
        Program(
            "codex",
            "Codex",
            "npm install -g @openai/codex",
            _set_up_codex,
            _codex_files,
            afterwards=f"start it with `codex --profile {CODEX_PROFILE}`",
        ),
        Program(
            "opencode",
            "OpenCode",
            "npm install -g opencode-ai",
            _set_up_opencode,
            _opencode_files,
            (".opencode/bin/opencode",),
        ),
        Program("qwen", "Qwen Code", "npm install -g @qwen-code/qwen-code", _set_up_qwen, _qwen_files),
        Program("cline", "Cline", "npm install -g cline", _set_up_cline, _cline_files),
        Program(
            "copilot",
            "GitHub Copilot CLI",
            "npm install -g @github/copilot",
            _set_up_copilot,
            places=(".local/bin/copilot",),
        ),
    )
}


def find_program(name: str) -> Program:
    """The card of a program. Raises BadRequest with the known names."""
    program = PROGRAMS.get(name.lower())
    if program is None:
        raise BadRequest(f"unknown program \"{name}\": 'ollama launch' knows {', '.join(PROGRAMS)}")
    return program
