"""A prompt may end with a question mark, which IPython would otherwise read as a request for help."""

from __future__ import annotations

import pytest
from IPython.core.interactiveshell import InteractiveShell

from ollama_nb.notebook import line


@pytest.fixture(autouse=True)
def taught(shell: InteractiveShell) -> None:
    line.install(shell)
    line.install(shell)


@pytest.mark.parametrize(
    "line",
    [
        "run m Why is the sky blue?",
        "run m really??",
        "run m Don't you know?",
        "run m What is (a",
        'run m "quoted?"',
        "run m 为什么天空是蓝色的？",
        "run m 你好吗?",
        "run m why? because",
    ],
)
@pytest.mark.parametrize("before", ["", "r = ", "if True:\n    ", "x = 1\n"])
def test_questions(shell: InteractiveShell, before: str, line: str) -> None:
    code = shell.transform_cell(f"{before}%ollama {line}\ny = 2\n")
    called: list[tuple[str, str]] = []

    class Recorder:
        def run_line_magic(self, name: str, text: str) -> None:
            called.append((name, text))

    namespace = {"get_ipython": Recorder}
    exec(code, namespace)
    assert called == [("ollama", line)]
    assert namespace["y"] == 2


def test_help_stays_help(shell: InteractiveShell) -> None:
    assert shell.transform_cell("%ollama?") == "get_ipython().run_line_magic('pinfo', '%ollama')\n"
    assert "pinfo" in shell.transform_cell("len?")
    text = "x = '''\n%ollama run m why?\n'''\n"
    assert shell.transform_cell(text) == text


def test_several_in_a_cell(shell: InteractiveShell) -> None:
    code = shell.transform_cell("%ollama run m (why?\nr = %ollama run m what's this?\nlen?\n")
    assert code.splitlines() == [
        "get_ipython().run_line_magic('ollama', 'run m (why?')",
        "r = get_ipython().run_line_magic('ollama', \"run m what's this?\")",
        "get_ipython().run_line_magic('pinfo', 'len')",
    ]
