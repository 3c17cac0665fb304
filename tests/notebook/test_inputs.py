"""Images, shapes of answers and defaults, as they reach the server."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import matplotlib.figure
import pydantic
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.display import Image
from PIL import Image as Pillow
from support.scripted_client import ScriptedClient, chat_reply, generate_reply

from ollama_nb.api.options import KINDS
from ollama_nb.errors import BadRequest
from ollama_nb.notebook.inputs import OPTION_HELP, answer_format, images
from ollama_nb.notebook.magics import register

PNG = b"\x89PNG\r\n"


class City(pydantic.BaseModel):
    name: str
    size: int


@dataclass
class Mood:
    mood: Literal["good", "bad"]


def use(shell: InteractiveShell, *replies: Any) -> ScriptedClient:
    client = ScriptedClient(*replies)
    register(shell, lambda: client)
    return client


def run(shell: InteractiveShell, code: str) -> None:
    result = shell.run_cell(code, store_history=True)
    if result.error_before_exec or result.error_in_exec:
        raise result.error_before_exec or result.error_in_exec


def decoded(name: str, value: Any) -> bytes:
    return base64.b64decode(images([name], {name: value})[0])


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "CMYK", "F"])
def test_a_pil_image_is_sent_as_png(mode: str) -> None:
    sent = Pillow.open(io.BytesIO(decoded("picture", Pillow.new(mode, (3, 2)))))
    assert (sent.format, sent.size) == ("PNG", (3, 2))


def test_figures_axes_bytes_and_paths(tmp_path: Path) -> None:
    axes = matplotlib.figure.Figure(figsize=(1, 1)).subplots()
    for drawn in (axes, axes.figure):
        assert decoded("drawn", drawn).startswith(b"\x89PNG")
    file = tmp_path / "a picture.png"
    file.write_bytes(PNG)
    for value in (PNG, bytearray(PNG), memoryview(PNG), file, str(file), Image(data=PNG, format="png")):
        assert decoded("value", value) == PNG
    assert base64.b64decode(images([str(file)], {})[0]) == PNG


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pictur", "--image pictur: no such variable or file, did you mean `picture`?"),
        ("number", "--image number: a variable of type int is not an image"),
        ("/nowhere/x.png", "cannot read the image /nowhere/x.png: No such file or directory"),
    ],
)
def test_invalid_images(name: str, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        images([name], {"picture": PNG, "number": 1})
    assert message in caught.value.message


def test_images_stay_in_the_conversation(shell: InteractiveShell) -> None:
    client = use(shell, chat_reply("a cat"), chat_reply("black"), generate_reply("a cat"))
    shell.user_ns["picture"] = PNG
    run(shell, "%%ollama chat m --image picture\nWhat is it?")
    run(shell, "%%ollama chat m\nWhich colour?")
    run(shell, "%ollama run m --image picture What is it?")
    encoded = [base64.b64encode(PNG).decode()]
    assert client.asked[0]["messages"] == [{"role": "user", "content": "What is it?", "images": encoded}]
    assert client.asked[1]["messages"][0] == client.asked[0]["messages"][0]
    assert "images" not in client.asked[1]["messages"][2]
    assert client.asked[2]["images"] == encoded


def test_the_name_of_a_type_gives_a_value_of_it(shell: InteractiveShell) -> None:
    client = use(
        shell, generate_reply('{"name": "Rome", ', '"size": 3}'), chat_reply('{"mood": "good"}'), chat_reply("ok")
    )
    shell.user_ns.update(City=City, Mood=Mood)
    run(shell, "r = %ollama run m --format City -o kept Which city?")
    assert shell.user_ns["r"] == shell.user_ns["kept"] == City(name="Rome", size=3)
    assert shell.user_ns["_ollama"].json() == {"name": "Rome", "size": 3}
    asked = client.asked[0]
    assert asked["format"]["required"] == ["name", "size"]
    assert "- size (integer)" in asked["system"]
    run(shell, "%%ollama chat m --system Brief. --format Mood -o mood\nHow are you?")
    assert shell.user_ns["mood"] == Mood("good")
    assert client.asked[1]["messages"][0]["content"].startswith("Brief.\n\nAnswer with one JSON object")
    run(shell, "%%ollama chat m\nWhy?")
    assert client.asked[2]["messages"][0] == {"role": "system", "content": "Brief."}


def test_an_answer_that_does_not_match_the_type_is_kept_as_text(
    shell: InteractiveShell, capsys: pytest.CaptureFixture[str]
) -> None:
    use(shell, generate_reply('{"name": 1}'), generate_reply('{"na', reason="length"))
    shell.user_ns["City"] = City
    for message in ("does not have the wanted shape", "cut off after 4 characters"):
        assert shell.run_cell("r = %ollama run m --format City x").error_in_exec
        assert message in "".join(capsys.readouterr())
        assert "r" not in shell.user_ns and shell.user_ns["_ollama"].startswith('{"na')


def test_formats_by_name() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    known = {"schema": schema, "text": '{"type": "array"}', "fields": {"city": str}, "number": 3}
    assert answer_format("json", {"json": 1}) == ("json", None)
    assert answer_format("schema", known) == (schema, None)
    assert answer_format("text", known) == ({"type": "array"}, None)
    assert answer_format("fields", known)[0]["properties"] == {"city": {"type": "string"}}
    for wrong, message in (
        ("fileds", "did you mean `fields`?"),
        ("number", "cannot be the shape"),
        ("[1]", "must be an object"),
    ):
        with pytest.raises(BadRequest) as caught:
            answer_format(wrong, known)
        assert message in caught.value.message


def test_defaults_apply_where_a_command_sets_nothing(
    shell: InteractiveShell, displays: list[Any], capsys: pytest.CaptureFixture[str]
) -> None:
    client = use(shell, *(generate_reply("ok") for _ in range(4)))
    assert shell.run_cell("%%ollama generate\nhi").error_in_exec
    assert "%config OllamaMagics.model = 'NAME'" in "".join(capsys.readouterr())
    run(shell, "%config OllamaMagics.model = 'small'")
    run(shell, "%config OllamaMagics.options = {'temperature': 0.5, 'seed': 1}")
    run(shell, "%config OllamaMagics.keep_alive = '10m'")
    run(shell, "%config OllamaMagics.system = 'Be brief.'")
    run(shell, "%config OllamaMagics.think = 'false'")
    run(shell, "%config OllamaMagics.stream = False")
    displays.clear()
    run(shell, "%%ollama generate --temperature 0\nhi")
    run(shell, "%ollama run - --system '' hi there")
    assert len(displays) == 2
    common = {"model": "small", "truncate": False, "keep_alive": "10m", "think": False}
    assert client.asked == [
        {**common, "prompt": "hi", "options": {"temperature": 0.0, "seed": 1}, "system": "Be brief."},
        {**common, "prompt": "hi there", "options": {"temperature": 0.5, "seed": 1}, "system": ""},
    ]
    run(shell, "%config OllamaMagics.options = {'temprature': 1}")
    assert shell.run_cell("%ollama run m hi").error_in_exec
    assert 'did you mean "temperature"?' in "".join(capsys.readouterr())


def test_without_a_default_the_last_model_is_used(shell: InteractiveShell) -> None:
    client = use(shell, generate_reply("ok"), generate_reply("ok"))
    run(shell, "%ollama run first hi")
    run(shell, "%%ollama generate\nagain")
    assert [asked["model"] for asked in client.asked] == ["first", "first"]


def test_every_model_option_has_help() -> None:
    assert OPTION_HELP.keys() == KINDS.keys()
