"""The table of verbs: one declaration per verb, read by the terminal program and by the magics.

The terminal program takes its whole command line from here; the magics take the flags and aliases of the verbs that
both have. Names and help texts are Ollama's wherever Ollama has the verb or the flag.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Flag:
    """``kind`` is ``bool``, ``int`` or ``string``; ``value`` names the value in help; ``bare``: meaning without one.

    ``keyword``: the argument of the verb's function that receives the value, if it differs from the long name.
    """

    long: str
    short: str = ""
    kind: str = "string"
    help: str = ""
    keyword: str = ""
    value: str = ""
    bare: str = ""

    @property
    def parameter(self) -> str:
        """The argument of the verb's function: ``max_rate`` for ``--max-rate``."""
        return self.keyword or self.long.removeprefix("--").replace("-", "_")

    @property
    def names(self) -> str:
        """``-q, --quiet``."""
        return f"{self.short}, {self.long}" if self.short else self.long


@dataclass(frozen=True, slots=True)
class Word:
    """A positional argument; ``usage`` is its form in help; ``many``: it takes all remaining words."""

    parameter: str
    usage: str
    required: bool = True
    many: bool = False


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb. ``hidden_aliases`` work but are not shown in help."""

    name: str
    help: str
    words: tuple[Word, ...] = ()
    flags: tuple[Flag, ...] = ()
    aliases: tuple[str, ...] = ()
    hidden_aliases: tuple[str, ...] = ()

    @property
    def usage(self) -> str:
        """The words as help shows them: ``MODEL [PROMPT]``."""
        return " ".join(word.usage for word in self.words)

    def flag(self, name: str) -> Flag | None:
        """The flag with a long or short name."""
        return next((flag for flag in self.flags if name in (flag.long, flag.short)), None)


MODEL = Word("model", "MODEL")
PREFIX = Word("prefix", "[PREFIX]", required=False, many=True)
MODELS = Word("models", "MODEL [MODEL...]", many=True)

AS = Flag("--as", help="Local name to give to the model", keyword="as_", value="NAME")
INSECURE = Flag("--insecure", kind="bool", help="Use an insecure registry")
MAX_RATE = Flag("--max-rate", help="Maximum bytes per second (e.g. 5MB)", value="RATE")
STREAMS = Flag("--streams", kind="int", help="Number of parallel connections for one file (default 4)", value="N")
SERVER_JSON = Flag("--json", kind="bool", help="Print the server's JSON document")
JSON = Flag("--json", kind="bool", help="Print a JSON document")
QUIET = Flag("--quiet", "-q", "bool", "Print only the names")
THINK = Flag(
    "--think", help="Thinking: true, false, high, medium, low or max (--think=low)", value="LEVEL", bare="true"
)
THINK_BUDGET = Flag("--think-budget", kind="int", help="Maximum tokens of thinking; 0: no thinking", value="N")
HIDE_THINKING = Flag("--hidethinking", kind="bool", help="Hide thinking output (if provided)")
KEEP_ALIVE = Flag("--keepalive", help="Duration to keep a model loaded (e.g. 5m)", value="TIME")
FORMAT = Flag("--format", help="Response format (e.g. json)", value="FORMAT")
VERBOSE_RUN = Flag("--verbose", kind="bool", help="Show timings for response")

SHOW_PARTS = ("license", "modelfile", "parameters", "template", "system")
"""The parts of a model that ``show`` can print alone, one flag each."""

VERBS = (
    Verb(
        "serve",
        "Start Ollama",
        flags=(
            Flag("--host", help="Address to listen on, in the form of OLLAMA_HOST"),
            Flag("--port", kind="int", help="Port to listen on (0: any free one)"),
        ),
        aliases=("start",),
    ),
    Verb(
        "create",
        "Create a model",
        (MODEL,),
        (
            Flag("--file", "-f", help='Name of the Modelfile (default "Modelfile")', value="PATH"),
            Flag("--quantize", "-q", help="Quantize model to this level (e.g. q4_K_M)", value="TYPE"),
            Flag("--draft-quantize", help="Quantize draft model to this level"),
            Flag("--link", kind="bool", help="Hard-link the files into the store instead of copying them"),
        ),
    ),
    Verb(
        "show",
        "Show information for a model",
        (MODEL,),
        (
            *(
                Flag(f"--{part}", kind="bool", help=f"Show {text} of a model")
                for part, text in zip(
                    SHOW_PARTS, ("license", "Modelfile", "parameters", "template", "system message"), strict=True
                )
            ),
            Flag("--verbose", "-v", "bool", "Show detailed model information"),
        ),
    ),
    Verb(
        "run",
        "Run a model",
        (MODEL, Word("prompt", "[PROMPT]", required=False, many=True)),
        (
            KEEP_ALIVE,
            VERBOSE_RUN,
            INSECURE,
            Flag("--nowordwrap", kind="bool", help="Don't wrap words to the next line"),
            FORMAT,
            THINK,
            THINK_BUDGET,
            HIDE_THINKING,
            Flag("--truncate", kind="bool", help="For embedding models: cut inputs that are too long (default true)"),
            Flag("--dimensions", kind="int", help="For embedding models: length of the vectors", value="N"),
        ),
    ),
    Verb("stop", "Stop a running model", (MODEL,)),
    Verb("pull", "Pull a model from a registry", (MODEL,), (AS, INSECURE, MAX_RATE, STREAMS)),
    Verb("push", "Push a model to a registry", (MODEL,), (INSECURE, MAX_RATE)),
    Verb("signin", "Sign in to ollama.com", hidden_aliases=("login",)),
    Verb("signout", "Sign out from ollama.com", hidden_aliases=("logout",)),
    Verb("list", "List models", (PREFIX,), (SERVER_JSON, QUIET), aliases=("ls",)),
    Verb(
        "ps",
        "List running models",
        (PREFIX,),
        (SERVER_JSON, QUIET, Flag("--batches", kind="bool", help="List the unfinished batches of requests instead")),
    ),
    Verb("cp", "Copy a model", (Word("source", "SOURCE"), Word("destination", "DESTINATION"))),
    Verb("rm", "Remove a model", (MODELS,)),
    Verb(
        "launch",
        "Start an agent program with a model of this server",
        (Word("words", "[PROGRAM] [-- ARGUMENTS]", required=False, many=True),),
        (
            Flag("--model", help="Model to use"),
            Flag("--config", kind="bool", help="Write the program's own configuration without starting it"),
            Flag("--restore", kind="bool", help="Put back the program's own configuration"),
            Flag("--yes", "-y", "bool", "Answer questions with yes"),
        ),
    ),
    # Ours; Ollama has none of these.
    Verb(
        "wheel",
        "Pack a model into wheels for a Python package index",
        (MODEL,),
        (
            Flag("--output", "-o", help="Folder to write to (default: the current one)"),
            Flag("--part-size", help="Maximum size of one wheel (default 100MB)"),
            Flag("--name", help="Name of the distribution (default: the model's)"),
            Flag("--version", help="Version of the distribution (default 1.0)"),
        ),
    ),
    Verb("export", "Write models into one tar file", (MODELS,), (Flag("--output", "-o", help="File to write"),)),
    Verb("import", "Add the models of a tar file to the store", (Word("file", "FILE"),), (AS,)),
    Verb(
        "fsck",
        "Check every stored model",
        flags=(Flag("--repair", kind="bool", help="Set damaged files aside"), JSON),
    ),
    Verb(
        "prune",
        "Remove files that no model uses",
        flags=(Flag("--dry-run", kind="bool", help="Only print what would be removed"), JSON),
    ),
    Verb("df", "Show the disk space that models use", flags=(JSON,)),
    Verb(
        "discover",
        "Find models of other programs on this disk, and create them here",
        (Word("names", "[NAME...]", required=False, many=True),),
        (AS, JSON),
    ),
    Verb(
        "outdated",
        "Ask registries for newer versions of models",
        (Word("models", "[MODEL...]", required=False, many=True),),
        (INSECURE, JSON),
    ),
    Verb(
        "keys",
        "Manage the API keys of this machine's server",
        (Word("action", "add|list|rm"), Word("names", "[NAME...]", required=False, many=True)),
        (
            Flag("--scope", help="Scopes of a new key: infer,read,write,admin (default infer,read)"),
            Flag("--days", help="Days until a new key expires (default: never)"),
            JSON,
        ),
    ),
    Verb(
        "doctor",
        "Check the set-up, and report it without secrets",
        flags=(JSON, Flag("--save", help="Also write the report to a file", value="FILE")),
        hidden_aliases=("diagnose",),
    ),
    Verb("help", "Help about any command", (Word("topic", "[command]", required=False, many=True),)),
)

BY_NAME = {verb.name: verb for verb in VERBS}
_BY_ALIAS = {alias: verb for verb in VERBS for alias in (*verb.aliases, *verb.hidden_aliases)}


def find_verb(name: str) -> Verb | None:
    """The verb with a name or alias."""
    return BY_NAME.get(name) or _BY_ALIAS.get(name)
