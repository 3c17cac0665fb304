"""Help and suggestions, laid out as Ollama lays them out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ollama_nb.cli.argv import Command, Flag

_HOST = ("OLLAMA_HOST", "IP Address for the ollama server (default 127.0.0.1:11434)")
_MODELS = ("OLLAMA_MODELS", "The path to the models directory")
_HOME = ("OLLAMA_NB_HOME", "Where locks, keys and logs are kept (default ~/.ollama/nb)")
_ENVIRONMENT: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("create", "show", "stop", "pull", "push", "list", "ps", "cp", "rm"), (_HOST,)),
    **dict.fromkeys(("wheel", "export", "import", "fsck", "prune", "df", "discover", "outdated"), (_MODELS,)),
    "keys": (_HOME,),
    "run": (
        ("OLLAMA_EDITOR", "Path to editor for interactive prompt editing (Ctrl+G)"),
        _HOST,
        ("OLLAMA_NOHISTORY", "Do not preserve readline history"),
    ),
    "serve": (
        ("OLLAMA_DEBUG", "Show additional debug information (e.g. OLLAMA_DEBUG=1)"),
        _HOST,
        ("OLLAMA_CONTEXT_LENGTH", "Context length to use unless otherwise specified"),
        ("OLLAMA_KEEP_ALIVE", 'The duration that models stay loaded in memory (default "5m")'),
        ("OLLAMA_MAX_LOADED_MODELS", "Maximum number of loaded models"),
        ("OLLAMA_MAX_QUEUE", "Maximum number of queued requests"),
        _MODELS,
        ("OLLAMA_NUM_PARALLEL", "Maximum number of parallel requests"),
        ("OLLAMA_NOPRUNE", "Do not prune model blobs on startup"),
        ("OLLAMA_ORIGINS", "A comma separated list of allowed origins"),
        ("OLLAMA_FLASH_ATTENTION", "Enabled flash attention"),
        ("OLLAMA_KV_CACHE_TYPE", "Quantization type for the K/V cache (default: f16)"),
        ("OLLAMA_LOAD_TIMEOUT", 'How long to allow model loads to stall before giving up (default "5m")'),
        _HOME,
        ("OLLAMA_NB_EXTRA_MODELS", "Further models directories, only read (default: the system Ollama's)"),
        ("OLLAMA_NB_REQUIRE_KEY", "Refuse to start without an API key"),
    ),
}
_HELP = Flag("--help", "-h", "bool")
_TYPE_WORDS = {"string": "string", "int": "int", "bool": ""}


def root_help(root: Command, commands: Iterable[Command]) -> str:
    shown = [*commands]
    width = max(11, *(len(command.name) for command in shown))
    return "\n".join(
        [
            root.help,
            "",
            "Usage:",
            "  ollama [flags]",
            "  ollama [command]",
            "",
            "Available Commands:",
            *(f"  {command.name:<{width}} {command.help}" for command in shown),
            "",
            *_flags("ollama", root.flags),
            "",
            'Use "ollama [command] --help" for more information about a command.',
        ]
    )


def command_help(command: Command) -> str:
    lines = [command.help, "", "Usage:", f"  ollama {command.name}{command.usage} [flags]", ""]
    if command.aliases:
        lines += ["Aliases:", f"  {', '.join((command.name, *command.aliases))}", ""]
    lines += _flags(command.name, command.flags)
    if variables := _ENVIRONMENT.get(command.name):
        lines += ["", "Environment Variables:", *(f"      {name:<27}   {text}" for name, text in variables)]
    return "\n".join(lines)


def unknown_command(name: str, commands: Iterable[Command]) -> str:
    """The error's text, with the commands that are close to what was typed."""
    text = f'unknown command "{name}" for "ollama"'
    near = [c.name for c in commands if _is_near(name.lower(), c.name)]
    return text + ("\n\nDid you mean this?\n" + "\n".join(f"\t{other}" for other in near) if near else "")


def _is_near(typed: str, name: str) -> bool:
    return name.startswith(typed) or edit_distance(typed, name) <= 2


def edit_distance(left: str, right: str) -> int:
    """Levenshtein's."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _flags(owner: str, flags: Sequence[Flag]) -> list[str]:
    shown = sorted([*flags, _HELP], key=lambda flag: flag.long)
    heads = [
        f"  {flag.short + ',' if flag.short else '   '} {flag.long} {_TYPE_WORDS[flag.kind]}".rstrip() for flag in shown
    ]
    width = max(map(len, heads))
    helps = [f"help for {owner}" if flag is _HELP else flag.help for flag in shown]
    return ["Flags:", *(f"{head:<{width}}   {text}".rstrip() for head, text in zip(heads, helps, strict=True))]
