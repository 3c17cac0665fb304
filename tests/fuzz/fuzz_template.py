"""Fuzz the template engines: ``python tests/fuzz/fuzz_template.py go|jinja --seconds 600 --seed 1``.

Prints one JSON line: ``executions``, ``texts`` (templates that rendered), ``slowest`` (seconds), ``grown`` (MiB of
memory), ``too_slow`` (Jinja templates stopped by the timer, as in the render process) and ``findings``: templates that
raised anything but TemplateError, modified their job, used too much time or memory, or reached outside the process.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]

from fuzz.budget import for_seconds

from ollama_nb.api.messages import Message, ToolCall
from ollama_nb.api.requests import PromptJob
from ollama_nb.errors import TemplateError
from ollama_nb.template import jinja, prompt
from ollama_nb.template.builtin import NAMES, builtin
from ollama_nb.template.execute import Budget, execute
from ollama_nb.template.parser import parse

SECONDS = {"go": 20.0, "jinja": 2.0}
"""Seconds of processor time per template. Go templates are bounded by their budget and must never reach it."""
MAX_TEXT = 4 << 20
REACHING = ("open", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "import", "pty.", "sys._getframe")

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a <city>",
        "parameters": {
            "type": "object",
            "required": ["city"],
            "properties": {"city": {"type": ["string", "null"], "enum": ["巴黎", 1, None]}, "n": {"type": "number"}},
        },
    },
}
TALK = (
    Message("system", "Be kind."),
    Message("user", "你好 {{ x }} {% raw %}", images=(b"i",)),
    Message(
        "assistant", "", thinking="hm", tool_calls=(ToolCall("get_weather", {"city": "巴黎", "a": [1, {"b": 2.5}]}),)
    ),
    Message("tool", "sunny", tool_name="get_weather", tool_call_id="c"),
    Message("user", "a" * 200),
)
JOB = PromptJob(kind="go", template="", messages=TALK, tools=(TOOL,), think=True, bos="<s>", eos="</s>", drops=(0, 2))
PLAIN = {
    "s": "text 你",
    "n": 3,
    "f": 2.5,
    "l": ["a", "b", [1]],
    "m": {"k": 1, "z": {"y": None}},
    "t": True,
    "nil": None,
}
Grammar = dict[str, list[str]]

# A rule is a list of alternatives; ``<name>`` refers to a rule, ``<name*>`` repeats it up to four times.
GO: Grammar = {
    "start": ["<node*>", "<define><node*>", "<node*><node*>"],
    "node": [
        "<text>", "{{<trim><pipe> }}", "{{<trim><pipe> -}}", "{{ <var> := <pipe> }}<node*>", "{{ <var> = <pipe> }}",
        "{{ if <pipe> }}<node*>{{ end }}", "{{ if <pipe> }}<node*>{{ else if <pipe> }}<node>{{ else }}<node>{{ end }}",
        "{{ range <pipe> }}<node*>{{ else }}<node>{{ end }}", "{{ range <var>, <var> := <pipe> }}<node*>{{ end }}",
        "{{ with <pipe> }}<node*>{{ else }}<node>{{ end }}", '{{ template "t" <arg> }}', "{{/* c */}}",
        '{{ block "b" <arg> }}<node*>{{ end }}', "{{ range <pipe> }}<node>{{ break }}{{ continue }}{{ end }}",
        "{{ range <big> }}<node*>{{ end }}", "{{ <var> = print <var> <var> }}", "<junk>",
    ],
    "define": ['{{ define "t" }}<node*>{{ end }}', '{{ define "t" }}<node>{{ template "t" <arg> }}{{ end }}'],
    "pipe": ["<arg>", "<call>", "<call>", "<arg> | <name>", "<call> | <name> <arg>", "<arg> | printf <string>"],
    "call": ["<name> <arg>", "<name> <arg> <arg>", "<name> <arg> <arg> <arg>", "printf <string> <arg> <arg>"],
    "arg": ["<field>", "<field>", "<var>", "$", ".", "nil", "<number>", "<string>", "(<pipe>)", "(<pipe>).<word>"],
    "field": [".<word>", ".<word>.<word>", "$.<word>", "<var>.<word>", ".<word>.<word>.<word>"],
    "word": [
        "Messages", "System", "Tools", "Role", "Content", "ToolCalls", "Function", "Name", "Arguments", "Parameters",
        "Properties", "Thinking", "Think", "String", "Missing", "s", "n", "f", "l", "m", "k", "t", "nil", "__class__",
    ],
    "var": ["$x", "$y"],
    "name": [
        "len", "index", "slice", "eq", "ne", "lt", "gt", "and", "or", "not", "print", "printf", "println", "json",
        "html", "js", "urlquery", "call", "currentDate", "toTypeScriptType", "nope",
    ],
    "number": ["0", "1", "-1", "3", "1.5", "1e3", "0x7f", "'c'", "9223372036854775807", "99999999999999999999"],
    "big": ["10", "1000", "1000000", "$.Messages", "(slice $.Messages 1)"],
    "string": [
        '"a"', '"%d %s %v %q"', '"%999999d"', '"%[3]*.[2]*[1]f"', "`raw`", '"\\u4f60\\n"', '"%x%X%U%c%t%e%g%T%p"', '""',
    ],
    "text": ["a", " \n ", "你好", "<|im_start|>", "{", "}}", "\x00", "\ud800"],
    "junk": ["{{", "{{ }}", "{{ end }}", "{{ else }}", "{{ . | }}", "{{ ( }}", '{{ "', "{{- ", "{{ $ }", "{{ break }}"],
    "trim": ["", "- ", " "],
}  # fmt: skip

JINJA: Grammar = {
    "start": ["<node*>", "<macro><node*>", "<node*><node*>"],
    "node": [
        "<text>", "{{ <expr> }}", "{{- <expr> -}}", "{% set <var> = <expr> %}", "{% set ns.x = <expr> %}",
        "{% if <expr> %}<node*>{% elif <expr> %}<node>{% else %}<node>{% endif %}",
        "{% for <var> in <expr> %}<node*>{% else %}<node>{% endfor %}",
        "{% for a, b in <expr> %}<node*>{% break %}{% endfor %}", "{% for <var> in <big> %}<node*>{% endfor %}",
        "{% set ns = namespace(x=<expr>) %}", "{% generation %}<node*>{% endgeneration %}", "{{ m(<expr>) }}",
        "{% filter <filter> %}<node*>{% endfilter %}", "{% call(v) m(<expr>) %}<node>{% endcall %}",
        "{% set <var> %}<node*>{% endset %}", "{% with <var> = <expr> %}<node*>{% endwith %}", "<escape>", "<junk>",
        "{% block b %}<node>{% endblock %}", "{% include <expr> %}", "{% import <expr> as i %}", "{% extends <expr> %}",
        "{% raw %}{{ x }}{% endraw %}", "{# c #}",
    ],
    "macro": ["{% macro m(v) %}<node*>{% endmacro %}", "{% macro m(v) %}<node>{{ m(v) }}{{ caller() }}{% endmacro %}"],
    "expr": [
        "<atom>", "<atom>", "<expr>.<attr>", "<expr>['<attr>']", "<expr>[<expr>]", "<expr> | <filter>",
        "<expr>(<expr>)",
        "<expr>.<attr>(<expr>)", "<expr> <op> <expr>", "[<expr>, <expr>]", "{'a': <expr>, <string>: <expr>}",
        "(<expr> if <expr> else <expr>)", "not <expr>", "<expr>[<number>:<number>]", "<expr> is <test>",
        "(<expr>, <expr>)",
        "<expr> | <filter>(<expr>)", "<function>(<expr>)", "<expr> | map(attribute='<attr>') | list",
    ],
    "atom": [
        "messages", "tools", "bos_token", "loop", "self", "<var>", "<string>", "<number>", "none", "true", "caller",
    ],
    "var": ["x", "y", "ns", "messages"],
    "function": [
        "range", "dict", "lipsum", "cycler", "joiner", "namespace", "raise_exception", "strftime_now", "x", "m",
        "super",
    ],
    "filter": [
        "tojson", "tojson(indent=4)", "length", "list", "join(',')", "map('upper')", "map('format', x)",
        "attr('<attr>')",
        "selectattr('<attr>')", "rejectattr('role', 'eq', 'user')", "groupby('<attr>')", "sort(attribute='<attr>')",
        "safe",
        "first", "last", "trim", "replace('a', 'bb')", "default('x')", "dictsort", "items", "string", "int", "batch(2)",
        "slice(2)", "sum", "unique", "reverse", "format(x)", "center(<number>)", "indent(<number>)", "wordwrap(1)",
        "pprint",
        "truncate(3)", "xmlattr", "urlize", "escape", "filesizeformat", "random", "min", "max", "round", "abs", "nope",
    ],
    "test": [
        "defined", "none", "string", "mapping", "iterable", "sequence", "callable", "number", "in [1]", "eq(1)",
        "nope",
    ],
    "op": ["+", "-", "*", "/", "//", "%", "**", "~", "==", "<", "and", "or", "in", "not in"],
    "attr": [
        "content", "role", "tool_calls", "function", "arguments", "split", "strip", "items", "keys", "get", "format",
        "format_map", "append", "pop", "join", "encode", "ljust", "zfill", "__class__", "__mro__", "__globals__",
        "__init__",
        "__subclasses__", "_TemplateReference__context", "__dict__", "gi_frame", "f_globals", "next", "current",
        "cycle",
        "update", "clear", "sort", "__getattribute__", "__func__", "__self__", "__code__", "__builtins__", "mro",
    ],
    "number": ["0", "1", "-1", "3", "2.5", "64", "1000", "100000000", "1e308"],
    "big": ["range(100000)", "range(1000)", "messages", "'a' * 1000", "[0] * 100000", "lipsum(n=9)"],
    "string": [
        "'a'", "'{0.__class__}'", "'%s %d'", "'%99999999d'", "'{:99999999}'", "'你\\n'", "''", "'user'", "'\\ud800'",
    ],
    "escape": [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
        "{{ lipsum.__globals__['os'].system('id') }}", "{{ x | attr('__cla' ~ 'ss__') | attr('__mro__') }}",
        "{% set f = '{0.__class__}'.format %}{{ f(x) }}", "{{ ['{0.__class__}'] | map('format', x) | list }}",
        "{{ self._TemplateReference__context.eval_ctx.environment }}", "{{ namespace.__init__.__globals__ }}",
        "{{ raise_exception.__globals__ }}", "{{ strftime_now.__closure__ }}", "{{ ''.format_map({'a': x}) }}",
        "{{ (messages | groupby('role'))[0].__class__ }}", "{{ messages | map('attr', '__class__') | list }}",
        "{{ [].append.__self__.__class__ }}", "{{ dict(__class__=1).__class__ }}",
        "{{ joiner('a').__call__.__func__ }}",
    ],
    "text": ["a", " \n ", "你好", "<|im_start|>", "{", "}}", "%}", "\x00", "\ud800"],
    "junk": ["{{", "{% %}", "{% endfor %}", "{% else %}", "{{ x | }}", "{{ ( }}", "{{ '", "{%- ", "{#", "{% break %}"],
}  # fmt: skip
SEEDS = {
    "go": [builtin(name).text for name in sorted(NAMES)],
    "jinja": [
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}",
        "{% if tools %}{% for t in tools %}{{ t.function | tojson(indent=2) }}{% endfor %}{% endif %}"
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.tool_calls %}{% for c in m.tool_calls %}"
        "{{ c.function.name ~ c.function.arguments | tojson }}{% set ns.n = ns.n + 1 %}{% endfor %}{% endif %}"
        "{% endfor %}",
    ],
}


class Writer:
    """Random texts of a grammar, bounded in depth and length; some are mutated afterwards."""

    def __init__(self, grammar: Grammar, seeds: list[str], random_: random.Random) -> None:
        self._grammar, self._seeds, self._random = grammar, seeds, random_
        self._room = 0

    def text(self) -> str:
        self._room = 600
        made = self._random.choice(self._seeds) if self._random.random() < 0.15 else self._rule("start", 0)
        return self._changed(made) if self._random.random() < 0.3 else made

    def _rule(self, name: str, depth: int) -> str:
        many = name.endswith("*")
        forms = self._grammar[name.rstrip("*")]
        if self._room < 0 or depth > 12:
            return "" if many else self._form(min(forms, key=lambda form: form.count("<")), depth + 1)
        count = self._random.randint(0, 4) if many else 1
        return "".join(self._form(self._random.choice(forms), depth + 1) for _ in range(count))

    def _form(self, form: str, depth: int) -> str:
        out = ""
        while form:
            before, mark, rest = form.partition("<")
            name, _, behind = rest.partition(">")
            if mark and name.rstrip("*") in self._grammar:
                out, form = out + before + self._rule(name, depth), behind
            else:
                out, form = out + before + mark, rest
        self._room -= len(out)
        return out

    def _changed(self, text: str) -> str:
        for _ in range(self._random.randint(1, 3)):
            at, to = sorted(self._random.randrange(len(text) + 1) for _ in range(2))
            piece = self._rule("node", 8) if self._random.random() < 0.5 else text[at : at + 9] * 2
            text = text[:at] + piece + text[min(to, at + 20) :]
        return text


class Late(BaseException):
    """The processor time is used up. Not an Exception, so that no template can catch it."""


def _late(signum: int, frame: object) -> None:
    raise Late


class Watch:
    """Records files, processes and imports while a template runs."""

    def __init__(self) -> None:
        self.on, self.seen = False, ""
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open" and args[0] == "<template>":
            return  # Python opens the source file of a syntax error
        if self.on and not self.seen and event.startswith(REACHING):
            self.seen = f"{event} {args!r}"[:200]


def go(text: str, whole: bool) -> list[str]:
    """Render the text over plain data; with ``whole``, use the whole budget and also render chats."""
    made = list(prompt.render(replace(JOB, template=text))) if whole else []
    return [*made, execute(parse(text), PLAIN, Budget() if whole else Budget(steps=20_000, output=1 << 16))]


def chat(text: str, whole: bool) -> list[str]:
    return list(prompt.render(replace(JOB, kind="jinja", template=text)))


def tried(render: Callable[[str, bool], list[str]], text: str, whole: bool, watch: Watch, seconds: float) -> str | bool:
    """True for a prompt, False for a TemplateError, "late", or a description of the finding."""
    before = deepcopy(JOB)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    watch.on, watch.seen = True, ""
    try:
        texts = render(text, whole)
        result: str | bool = True
    except TemplateError as error:
        texts, result = [], False if error.message else "an error without words"
    except Late:
        texts, result = [], "late"
    except BaseException as error:
        texts, result = [], f"{type(error).__name__}: {error}"[:200]
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        watch.on = False
    if watch.seen:
        return f"reached out: {watch.seen}"
    if any(len(made) > MAX_TEXT for made in texts):
        return "too long"
    return result if before == JOB else "changed its job"


def import_all() -> None:
    """Trigger the lazy imports of Jinja."""
    common = "{{ lipsum(1) }}{{ strftime_now('%Y') }}{{ [1] | random | pprint }}{{ 'a' | wordwrap(1) | urlize }}"
    for text in (common, "{{ 1 / 0 }}", "{% break %}", "{{ 你好 }}"):
        with contextlib.suppress(TemplateError):
            jinja.render(text, {})


def main() -> None:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("language", choices=["go", "jinja"])
    arguments.add_argument("--seconds", type=float, default=5.0)
    arguments.add_argument("--count", type=int, help="so many templates, however long it takes")
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    is_go = asked.language == "go"
    render, grammar = (go, GO) if is_go else (chat, JINJA)
    dice = random.Random(asked.seed)
    writer = Writer(grammar, SEEDS[asked.language], dice)
    signal.signal(signal.SIGPROF, _late)
    import_all()
    start_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if not is_go:
        resource.setrlimit(resource.RLIMIT_AS, (512 << 20, 512 << 20))
    watch = Watch()
    found: dict[str, Any] = {"executions": 0, "texts": 0, "too_slow": 0, "slowest": 0.0, "findings": []}
    for _ in range(1, asked.count + 1) if asked.count else for_seconds(asked.seconds):
        if len(found["findings"]) == 20:
            break
        text = writer.text()
        began = time.process_time()
        result = tried(render, text, dice.random() < 0.3, watch, SECONDS[asked.language])
        found["slowest"] = max(found["slowest"], round(time.process_time() - began, 2))
        found["executions"] += 1
        if result == "late" and not is_go:
            found["too_slow"] += 1
        elif result is True:
            found["texts"] += 1
        elif result:
            found["findings"].append([result, text])
    found["grown"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start_kib) >> 10
    print(json.dumps(found))


if __name__ == "__main__":
    main()
