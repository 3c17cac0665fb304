"""``%ollama code`` and ``%ollama explain``."""

from __future__ import annotations

from typing import Any

import pytest
from IPython.core.interactiveshell import InteractiveShell
from support.scripted_client import ScriptedClient, generate_reply

from ollama_nb.errors import BadRequest
from ollama_nb.notebook.assist import MAX_QUOTED, code_of
from ollama_nb.notebook.magics import register


def use(shell: InteractiveShell, *replies: Any) -> ScriptedClient:
    client = ScriptedClient(*replies)
    register(shell, lambda: client)
    return client


def next_cells(shell: InteractiveShell) -> list[tuple[str, bool]]:
    """The texts that the front end puts into cells, and whether each replaces the cell that ran."""
    found = [(part["text"], part["replace"]) for part in shell.payload_manager.read_payload()]
    shell.payload_manager.clear_payload()
    return found


@pytest.fixture
def kernel_shell(shell: InteractiveShell, displays: list[Any]) -> InteractiveShell:
    """New cells are payloads, as in a kernel."""
    shell.set_next_input = lambda text, replace=False: shell.payload_manager.write_payload(  # type: ignore[method-assign]
        {"source": "set_next_input", "text": text, "replace": replace}
    )
    return shell


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("Here:\n```python\nx = 1\nprint(x)\n```\nDone.", "x = 1\nprint(x)"),
        ("```\nx = 1\n```", "x = 1"),
        ("```py\na\n```\nthen\n~~~\nb\n~~~", "a\n\n\nb"),
        ("```bash\npip install x\n```\n```python\nimport x\n```", "import x"),
        ("````python\ns = '''\n```\n'''\n````", "s = '''\n```\n'''"),
        ("```python\nx = [1,\n     2", "x = [1,\n     2"),
        ("x = 1\n", "x = 1"),
        ("1. First:\n   ```python\n   x\n   ```", "x"),
        ("```python title='a'\nx\n```", "x"),
        ('```python\r\nprint("你好")\r\n```', 'print("你好")'),
    ],
)
def test_code_of_an_answer(answer: str, code: str) -> None:
    assert code_of(answer) == code


@pytest.mark.parametrize("answer", ["", "I cannot do that.", "```bash\nls\n```", "```python\n```"])
def test_answers_without_code(answer: str) -> None:
    with pytest.raises(BadRequest, match="the answer contains no code"):
        code_of(answer)


def test_code_becomes_a_cell_and_is_not_run(kernel_shell: InteractiveShell) -> None:
    client = use(kernel_shell, generate_reply("```python\nran = True\n```"), generate_reply("Say `x = 2`."))
    kernel_shell.run_cell("%ollama code m Set a variable")
    assert next_cells(kernel_shell) == [("ran = True", False)]
    assert "ran" not in kernel_shell.user_ns
    assert "```python" in client.asked[0]["system"]
    kernel_shell.run_cell("%ollama code")
    assert next_cells(kernel_shell) == [("ran = True", False)]
    kernel_shell.run_cell("%%ollama code --system 'Only R.'\nSet a variable")
    assert client.asked[1]["model"] == "m" and client.asked[1]["system"] == "Only R."
    assert next_cells(kernel_shell) == []


def test_code_needs_an_answer_first(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    use(shell)
    assert shell.run_cell("%ollama code").error_in_exec
    assert "there is no answer yet" in "".join(capsys.readouterr())


def test_the_last_error_is_explained(shell: InteractiveShell, capsys: pytest.CaptureFixture[str]) -> None:
    client = use(shell, *(generate_reply("ok") for _ in range(3)))
    shell.run_cell("def half(x):\n    return x / 0\n\nprint('{{data}}')\nhalf(3)")
    shell.user_ns["data"] = "never inserted"
    shell.run_cell("%ollama explain m")
    prompt = client.asked[0]["prompt"]
    assert prompt.startswith(
        "This cell of a notebook:\n\n```python\ndef half(x):\n    return x / 0\n\nprint('{{data}}')\n"
    )
    assert "ZeroDivisionError: division by zero" in prompt
    assert prompt.count("\n  File ") == 2 and "interactiveshell" not in prompt
    shell.run_cell("x = (1")
    shell.run_cell("%ollama explain m In Chinese, please.")
    assert "```python\nx = (1\n```" in client.asked[1]["prompt"] and "SyntaxError" in client.asked[1]["prompt"]
    assert client.asked[1]["prompt"].endswith("\n\nIn Chinese, please.")
    shell.run_cell(f"raise ValueError('{'long ' * 5000}')")
    shell.run_cell("%ollama explain")
    assert "…" in client.asked[2]["prompt"] and len(client.asked[2]["prompt"]) < 2 * MAX_QUOTED + 500


def test_nothing_to_explain(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(shell)
    monkeypatch.delattr("sys.last_value", raising=False)
    assert shell.run_cell("%ollama explain m").error_in_exec
    assert "no cell of this notebook has raised an exception yet" in "".join(capsys.readouterr())
