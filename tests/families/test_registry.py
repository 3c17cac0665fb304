"""The registry of model families: every module has a card, every name has golden cases, and lookups find them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ollama_nb import families
from ollama_nb.api.models import Layer, Manifest, Model, ModelConfig
from ollama_nb.api.names import Digest, ModelName
from ollama_nb.errors import BadRequest
from ollama_nb.families.card import Family

TESTS = Path(__file__).parent.parent
PACKAGE = Path(families.__file__).parent
GOLDEN_PROMPTS = {path.stem for path in (TESTS / "golden" / "renderers").glob("*.json")} - {"cases"}
GOLDEN_REPLIES = {
    case["parser"] for case in json.loads((TESTS / "golden" / "parsers" / "cases.json").read_text("utf-8"))["cases"]
}


def model(name: str = "m", **config: str) -> Model:
    manifest = Manifest(Layer("", Digest("0" * 64), 0), ())
    return Model(ModelName(name), "d", manifest, ModelConfig(**config), 0.0, 0)  # type: ignore[arg-type]


def test_every_module_has_a_card() -> None:
    assert families.cards().keys() == {path.stem for path in PACKAGE.glob("*.py")} - {"__init__", "card"}
    assert all(isinstance(card, Family) for card in families.cards().values())


@pytest.mark.parametrize("module", families.cards())
def test_every_name_of_a_card_has_golden_cases(module: str) -> None:
    card = families.cards()[module]
    assert card.renderers or card.parsers
    assert card.renderers.keys() <= GOLDEN_PROMPTS
    assert card.parsers.keys() <= GOLDEN_REPLIES


def test_no_golden_cases_are_left_over() -> None:
    assert families.renderers().keys() == GOLDEN_PROMPTS
    assert families.parsers().keys() == GOLDEN_REPLIES


def test_no_two_cards_claim_a_name() -> None:
    cards = families.cards().values()
    for field in ("renderers", "parsers", "create_defaults"):
        names = [name for card in cards for name in getattr(card, field)]
        assert len(names) == len(set(names)), field


def test_what_a_card_refers_to_exists() -> None:
    for card in families.cards().values():
        assert not card.template_parser or card.template_parser in card.parsers
        for defaults in card.create_defaults.values():
            assert defaults.renderer in card.renderers
            assert defaults.parser in card.parsers


def test_a_new_module_is_a_new_family(tmp_path: Path) -> None:
    """Nothing else must be edited: a card found in the package's folder is registered."""
    program = (
        "from ollama_nb import families\n"
        f"families.__path__.append({str(tmp_path)!r})\n"
        "print(families.render('new', [], [], None), families.parser('new').thinking)"
    )
    (tmp_path / "newest.py").write_text(
        "from ollama_nb.families.card import Family, ParserSpec\n"
        "FAMILY = Family(renderers={'new': lambda messages, tools, think: '<new>'},\n"
        "                parsers={'new': ParserSpec(create=print, thinking=True)})\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=PACKAGE)
    assert result.stdout == "<new> True\n"


def test_importing_the_registry_loads_no_family() -> None:
    program = (
        "import sys, ollama_nb.families, ollama_nb.template.prompt\n"
        "print([name for name in sys.modules if name.startswith(('ollama_nb.families.', 'ollama_nb.reply'))])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "['ollama_nb.families.card']\n"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(BadRequest, match=r'^unknown parser "qwen9"$'):
        families.parser("qwen9")
    with pytest.raises(BadRequest, match=r'^unknown renderer "qwen9"$'):
        families.check_renderer("qwen9")


def test_lookup_by_model() -> None:
    assert [card.hint_to_pull for card in families.of_model(model("deepseek-r1"))] == [True]
    assert [card.strip_old_thinking for card in families.of_model(model(model_family="qwen3"))] == [True]
    assert [card.capabilities for card in families.of_model(model(model_family="gpt-oss"))] == [{"thinking"}]
    assert not list(families.of_model(model(model_family="llama")))


def test_lookup_by_architecture() -> None:
    defaults = families.create_defaults("nemotron_h_moe")
    assert defaults is not None and (defaults.renderer, defaults.parser) == ("nemotron-3-nano", "nemotron-3-nano")
    assert families.create_defaults("llama") is None
    assert families.can_shift("llama") and not families.can_shift("deepseek2")
