"""Help texts and suggestions, in Ollama's layout."""

from __future__ import annotations

from collections.abc import Sequence

from ollama_nb.verbs.table import VERBS, Flag, Verb

_HOST = ("OLLAMA_HOST", "IP Address for the ollama server (default 127.0.0.1:11434)")
_MODELS = ("OLLAMA_MODELS", "The path to the models directory")
_HOME = ("OLLAMA_NB_HOME", "The directory of locks, keys and logs (default ~/.ollama/nb)")
_ENVIRONMENT: dict[str, tuple[tuple[str, str], ...]] = {
    **dict.fromkeys(("create", "show", "stop", "pull", "push", "list", "ps", "cp", "rm"), (_HOST,)),
    **dict.fromkeys(("wheel", "export", "import", "fsck", "prune", "df", "discover", "outdated"), (_MODELS,)),
    "keys": (_HOME,),
    "doctor": (_HOST, _MODELS, _HOME),
    "launch": (_HOST, _HOME),
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
        ("OLLAMA_NB_EXTRA_MODELS", "Additional read-only models directories (default: the system Ollama's)"),
        ("OLLAMA_NB_REQUIRE_KEY", "Refuse to start without an API key"),
    ),
}
_HELP = Flag("--help", "-h", "bool")
_TYPE_WORDS = {"string": "string", "int": "int", "bool": ""}


def root_help(root: Verb) -> str:
    """The help of the program itself."""
    width = max(11, *(len(verb.name) for verb in VERBS))
    return "\n".join(
        [
            root.help,
            "",
            "Usage:",
            "  ollama [flags]",
            "  ollama [command]",
            "",
            "Available Commands:",
            *(f"  {verb.name:<{width}} {verb.help}" for verb in VERBS),
            "",
            *_flag_lines("ollama", root.flags),
            "",
            'Use "ollama [command] --help" for more information about a command.',
        ]
    )


def verb_help(verb: Verb) -> str:
    """The help of one verb."""
    usage = " ".join(filter(None, ("ollama", verb.name, verb.usage, "[flags]")))
    lines = [verb.help, "", "Usage:", f"  {usage}", ""]
    if verb.aliases:
        lines += ["Aliases:", f"  {', '.join((verb.name, *verb.aliases))}", ""]
    lines += _flag_lines(verb.name, verb.flags)
    if variables := _ENVIRONMENT.get(verb.name):
        lines += ["", "Environment Variables:", *(f"      {name:<27}   {text}" for name, text in variables)]
    return "\n".join(lines)


def unknown_command(name: str) -> str:
    """The error message for an unknown verb, with the verbs that are similar to it."""
    text = f'unknown command "{name}" for "ollama"'
    near = [verb.name for verb in VERBS if _is_near(name.lower(), verb.name)]
    return text + ("\n\nDid you mean this?\n" + "\n".join(f"\t{other}" for other in near) if near else "")


def _is_near(typed: str, name: str) -> bool:
    return name.startswith(typed) or edit_distance(typed, name) <= 2


def edit_distance(left: str, right: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(right) + 1))
    for i, a in enumerate(left, 1):
        before, row[0] = row[0], i
        for j, b in enumerate(right, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def _flag_lines(owner: str, flags: Sequence[Flag]) -> list[str]:
    shown = sorted([*flags, _HELP], key=lambda flag: flag.long)
    heads = [
        f"  {flag.short + ',' if flag.short else '   '} {flag.long} {_TYPE_WORDS[flag.kind]}".rstrip() for flag in shown
    ]
    width = max(map(len, heads))
    helps = [f"help for {owner}" if flag is _HELP else flag.help for flag in shown]
    return ["Flags:", *(f"{head:<{width}}   {text}".rstrip() for head, text in zip(heads, helps, strict=True))]
