r"""Which of llama.cpp's rules splits text into words as a ``tokenizer.json`` does, found by the rule's own expression.

llama.cpp knows the rules by name only. A rule that is none of them is refused: with another one the model would read
other tokens than it was trained on, and nobody would notice.
"""

from __future__ import annotations

from typing import Any

from ollama_nb.errors import BadRequest

_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cased(end: str) -> str:
    front = r"[^\r\n\p{L}\p{N}]?"
    return f"{front}{_UPPER}*{_LOWER}+{end}|{front}{_UPPER}+{_LOWER}*{end}"


LLAMA3 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}"
QWEN2 = rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}"
QWEN35 = (
    rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[\p{{L}}\p{{M}}]+|\p{{N}}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = rf"{_cased('')}|\p{{N}}|{_SLASHED}"
GPT4O = rf"{_cased(_CONTRACTIONS + '?')}|\p{{N}}{{1,3}}|{_SLASHED}"
GPT2 = "<GPT-2>"
"""The expression that ``ByteLevel`` has built in."""
DIGITS = "<digits>"

_NAMES: dict[tuple[str, ...], str] = {
    (LLAMA3,): "llama-bpe",
    (QWEN2,): "qwen2",
    (QWEN35,): "qwen35",
    (TEKKEN,): "tekken",
    (GPT4O,): "gpt-4o",
    (GPT2,): "gpt-2",
    (DIGITS, GPT2): "smollm",
}


def pretokenizer(tokenizer: dict[str, Any]) -> str:
    """llama.cpp's name for the rule of a ``tokenizer.json``. Raises BadRequest for one that llama.cpp has not."""
    rules = tuple(_rules(tokenizer.get("pre_tokenizer")))
    name = _NAMES.get(rules)
    if name is None:
        shown = " then ".join(rules) or "no rule"
        raise BadRequest(f"llama.cpp cannot split text as this tokenizer does ({shown}); use a GGUF of this model")
    if name == "llama-bpe" and not tokenizer.get("model", {}).get("ignore_merges"):
        return "smaug-bpe"  # the same rule, for vocabularies whose whole words are made by merges
    return name


RULES_BY_CLASS: dict[str, dict[str, Any]] = {
    "Qwen2Tokenizer": {"type": "Split", "pattern": {"Regex": QWEN2}},
    "GPT2Tokenizer": {"type": "ByteLevel"},
    "RobertaTokenizer": {"type": "ByteLevel"},
}
"""What tokenizers that only have a vocabulary and merges split by: it is nowhere but in the code of their class."""
CLASSES_BY_KIND = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
}
"""``model_type`` of config.json → the class that is meant when none is named."""


def rule_of_class(name: str, kind: str) -> dict[str, Any]:
    """The ``pre_tokenizer`` of a tokenizer's class, or of the usual class of a kind of models.

    Raises BadRequest for a class whose rule is not known.
    """
    named = name.removesuffix("Fast") or CLASSES_BY_KIND.get(kind, "")
    if named not in RULES_BY_CLASS:
        which = f'a tokenizer of the class "{named}"' if named else "this tokenizer"
        raise BadRequest(
            f"vocab.json and merges.txt do not say how {which} splits text: put the model's tokenizer.json beside them"
        )
    return RULES_BY_CLASS[named]


def _rules(step: Any) -> list[str]:
    if not isinstance(step, dict):
        return []
    match step.get("type"):
        case "Sequence":
            return [rule for one in step.get("pretokenizers", []) for rule in _rules(one)]
        case "Split":
            pattern = step.get("pattern")
            found = pattern.get("Regex", pattern.get("String")) if isinstance(pattern, dict) else None
            return [str(found)]
        case "Digits":
            return [DIGITS if step.get("individual_digits") else "<runs of digits>"]
        case "ByteLevel":
            return [GPT2] if step.get("use_regex", True) else []
        case kind:
            return [f"<{kind}>"]
