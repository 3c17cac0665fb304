"""The command line is parsed as Ollama does, with its error messages."""

from __future__ import annotations

import re

import pytest
from support.command_line import RunCommand

from ollama_nb.cli import parse
from ollama_nb.cli.main import ROOT
from ollama_nb.errors import BadRequest
from ollama_nb.verbs.table import BY_NAME, Verb, Word, find_verb


def read(line: list[str]) -> tuple[str, dict[str, object]]:
    name, rest = parse.split_command(line, ROOT)
    verb = find_verb(name)
    assert verb is not None
    return verb.name, parse.parse_arguments(verb, rest).arguments(verb)


@pytest.mark.parametrize(
    ("line", "name", "arguments"),
    [
        (["run", "m"], "run", {"model": "m", "prompt": []}),
        (["run", "m", "a", "b"], "run", {"model": "m", "prompt": ["a", "b"]}),
        (["run", "m", ""], "run", {"model": "m", "prompt": [""]}),
        (["run", "m", "--", "--verbose"], "run", {"model": "m", "prompt": ["--verbose"]}),
        (["run", "m", "-"], "run", {"model": "m", "prompt": ["-"]}),
        (["run", "--think", "m", "low"], "run", {"model": "m", "prompt": ["low"], "think": "true"}),
        (["run", "m", "--think=low"], "run", {"model": "m", "prompt": [], "think": "low"}),
        (["run", "m", "--think="], "run", {"model": "m", "prompt": [], "think": ""}),
        (["run", "m", "--truncate=false"], "run", {"model": "m", "prompt": [], "truncate": False}),
        (["run", "m", "--truncate"], "run", {"model": "m", "prompt": [], "truncate": True}),
        (["run", "m", "--verbose=0"], "run", {"model": "m", "prompt": [], "verbose": False}),
        (["run", "m", "--dimensions", "8"], "run", {"model": "m", "prompt": [], "dimensions": 8}),
        (["run", "m", "--dimensions=-1"], "run", {"model": "m", "prompt": [], "dimensions": -1}),
        (["run", "m", "--format", "--verbose"], "run", {"model": "m", "prompt": [], "format": "--verbose"}),
        (["--verbose", "run", "m"], "run", {"model": "m", "prompt": [], "verbose": True}),
        (["--keepalive", "5m", "run", "m"], "run", {"model": "m", "prompt": [], "keepalive": "5m"}),
        (["--think", "run", "m"], "run", {"model": "m", "prompt": [], "think": "true"}),
        (["show", "--license", "m"], "show", {"model": "m", "license": True}),
        (["show", "m", "-v"], "show", {"model": "m", "verbose": True}),
        (["create", "m", "-f", "x"], "create", {"model": "m", "file": "x"}),
        (["create", "m", "-fx"], "create", {"model": "m", "file": "x"}),
        (["create", "-f=x", "m"], "create", {"model": "m", "file": "x"}),
        (["create", "m", "-f", "x", "-f", "y"], "create", {"model": "m", "file": "y"}),
        (["ls"], "list", {"prefix": []}),
        (["list", "a", "b"], "list", {"prefix": ["a", "b"]}),
        (["ps", "-q"], "ps", {"prefix": [], "quiet": True}),
        (["start", "--host", ":1", "--port=0"], "serve", {"host": ":1", "port": 0}),
        (["cp", "a", "b"], "cp", {"source": "a", "destination": "b"}),
        (["rm", "a", "b"], "rm", {"models": ["a", "b"]}),
        (["pull", "pip://x", "--as", "y"], "pull", {"model": "pip://x", "as_": "y"}),
    ],
)
def test_arguments(line: list[str], name: str, arguments: dict[str, object]) -> None:
    assert read(line) == (name, arguments)


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["run"], "requires at least 1 arg(s), only received 0"),
        (["show"], "accepts 1 arg(s), received 0"),
        (["show", "a", "b"], "accepts 1 arg(s), received 2"),
        (["cp", "a"], "accepts 2 arg(s), received 1"),
        (["serve", "x"], "accepts 0 arg(s), received 1"),
        (["list", "--foo"], "unknown flag: --foo"),
        (["list", "--foo=1"], "unknown flag: --foo"),
        (["run", "m", "-x"], "unknown shorthand flag: 'x' in -x"),
        (["show", "m", "-vx"], "unknown shorthand flag: 'x' in -vx"),
        (["run", "m", "--format"], "flag needs an argument: --format"),
        (["create", "m", "-f"], "flag needs an argument: 'f' in -f"),
        (
            ["run", "m", "--dimensions", "abc"],
            'invalid argument "abc" for "--dimensions" flag: strconv.ParseInt: parsing "abc": invalid syntax',
        ),
        (
            ["run", "m", "--dimensions", "9" * 30],
            f'invalid argument "{"9" * 30}" for "--dimensions" flag: '
            f'strconv.ParseInt: parsing "{"9" * 30}": value out of range',
        ),
        (
            ["show", "m", "--verbose=maybe"],
            'invalid argument "maybe" for "-v, --verbose" flag: strconv.ParseBool: parsing "maybe": invalid syntax',
        ),
    ],
)
def test_usage_errors(line: list[str], text: str) -> None:
    with pytest.raises(BadRequest) as caught:
        read(line)
    assert caught.value.message == text


def test_a_word_can_be_optional() -> None:
    verb = Verb("hello", "Greet", words=(Word("name", "NAME"), Word("title", "[TITLE]", required=False)))
    assert parse.parse_arguments(verb, ["Ada"]).arguments(verb) == {"name": "Ada"}
    assert parse.parse_arguments(verb, ["Ada", "Dr"]).arguments(verb) == {"name": "Ada", "title": "Dr"}
    with pytest.raises(BadRequest, match=re.escape("accepts between 1 and 2 arg(s), received 3")):
        parse.parse_arguments(verb, ["Ada", "Dr", "x"])


def test_an_error_is_one_line_and_exit_1(ollama: RunCommand) -> None:
    result = ollama("show")
    assert (result.code, result.out, result.err) == (1, "", "Error: accepts 1 arg(s), received 0\n")


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("lst", ["list", "ps"]),
        ("pul", ["run", "pull", "push", "ps"]),
        ("creat", ["create"]),
        ("SIGN", ["signin", "signout"]),
        ("frobnicate", []),
    ],
)
def test_unknown_commands_with_suggestions(ollama: RunCommand, word: str, near: list[str]) -> None:
    hint = "\n\nDid you mean this?\n" + "\n".join(f"\t{name}" for name in near) if near else ""
    assert ollama(word).err == f'Error: unknown command "{word}" for "ollama"{hint}\n'


@pytest.mark.parametrize("line", [[], ["help"], ["--help"], ["-h"]])
def test_root_help_lists_the_commands_in_order(ollama: RunCommand, line: list[str]) -> None:
    result = ollama(*line)
    assert result.code == 0
    listed = result.out.split("Available Commands:\n")[1].split("\n\n")[0]
    assert [row.split()[0] for row in listed.splitlines()] == [
        *("serve", "create", "show", "run", "stop", "pull", "push", "signin", "signout", "list", "ps", "cp", "rm"),
        "launch",
        *("wheel", "export", "import", "fsck", "prune", "df", "discover", "outdated", "keys", "doctor"),
        "help",
    ]
    assert result.out.endswith('Use "ollama [command] --help" for more information about a command.\n')


@pytest.mark.parametrize("command", BY_NAME)
def test_help_of_a_command_is_the_same_both_ways(ollama: RunCommand, command: str) -> None:
    asked, flagged = ollama("help", command), ollama(command, "--help")
    assert asked.out == flagged.out
    assert f"Usage:\n  ollama {command}" in asked.out
    assert (asked.code, asked.err) == (0, "")


def test_help_names_the_environment(ollama: RunCommand) -> None:
    line = "      OLLAMA_NOHISTORY              Do not preserve readline history"
    assert line in ollama("run", "--help").out
    assert "Aliases:\n  list, ls\n" in ollama("help", "ls").out


def test_help_on_an_unknown_topic(ollama: RunCommand) -> None:
    result = ollama("help", "foo")
    assert result.code == 0
    assert result.out == ""
    assert result.err.startswith("Unknown help topic [`foo`]\nUsage:\n  ollama [flags]\n")


@pytest.mark.parametrize("command", ["signin", "signout", "login", "logout"])
def test_accounts_are_not_supported(ollama: RunCommand, command: str) -> None:
    result = ollama(command)
    assert result.code == 1
    assert result.err.startswith("Error: cloud accounts are not supported")
