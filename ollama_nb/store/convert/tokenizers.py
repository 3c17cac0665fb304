r"""Read tokenizers: byte-level BPE, SentencePiece BPE, Unigram and WordPiece, and their pre-tokenizers.

llama.cpp identifies pre-tokenizers by name. The name is found by the regular expression in ``tokenizer.json``. An
unknown expression is an error, because another pre-tokenizer would silently produce other tokens than in training.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from typing import Any

from gguf import TokenType

from ollama_nb.errors import BadRequest, CorruptModel
from ollama_nb.store.convert.checkpoint import Checkpoint
from ollama_nb.store.convert.sentencepiece import read_sentencepiece
from ollama_nb.store.convert.vocabulary import SPACE, CheckpointVocabulary, added_tokens, looks_special, named_special

# Regular expressions of pre-tokenizers, as in ``tokenizer.json``.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_WORD = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_SLASHED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")


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
"""The built-in expression of ``ByteLevel``."""
DIGITS = "<digits>"  # the pre-tokenizer ``Digits`` with individual digits

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
    """Return llama.cpp's name of the pre-tokenizer. Raises BadRequest if llama.cpp does not have it."""
    expressions = tuple(_expressions(tokenizer.get("pre_tokenizer")))
    name = _NAMES.get(expressions)
    if name is None:
        described = " then ".join(expressions) or "none"
        raise BadRequest(
            f"llama.cpp does not support the pre-tokenizer of this model ({described}); use a GGUF of this model"
        )
    if name == "llama-bpe" and not tokenizer.get("model", {}).get("ignore_merges"):
        return "smaug-bpe"  # the same expression, without ignore_merges
    return name


PRETOKENIZERS_BY_CLASS: dict[str, dict[str, Any]] = {
    "Qwen2Tokenizer": {"type": "Split", "pattern": {"Regex": QWEN2}},
    "GPT2Tokenizer": {"type": "ByteLevel"},
    "RobertaTokenizer": {"type": "ByteLevel"},
}
"""Pre-tokenizers of tokenizers without ``tokenizer.json``, which are defined in the code of their class only."""
CLASSES_BY_MODEL_TYPE = {
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), "Qwen2Tokenizer"),
    "gpt2": "GPT2Tokenizer",
    "roberta": "RobertaTokenizer",
}
"""Default tokenizer class by ``model_type`` of config.json."""


def pretokenizer_of_class(name: str, kind: str) -> dict[str, Any]:
    """Return the ``pre_tokenizer`` of a tokenizer class, or of the default class of a model type.

    Raises BadRequest for an unknown class.
    """
    named = name.removesuffix("Fast") or CLASSES_BY_MODEL_TYPE.get(kind, "")
    if named not in PRETOKENIZERS_BY_CLASS:
        which = f'the tokenizer class "{named}"' if named else "this tokenizer"
        raise BadRequest(
            f"the pre-tokenizer of {which} is not known: add the model's tokenizer.json to vocab.json and merges.txt"
        )
    return PRETOKENIZERS_BY_CLASS[named]


def _expressions(step: Any) -> list[str]:
    if not isinstance(step, dict):
        return []
    match step.get("type"):
        case "Sequence":
            return [rule for one in step.get("pretokenizers", []) for rule in _expressions(one)]
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


def read_vocabulary(checkpoint: Checkpoint) -> CheckpointVocabulary:
    """Read the vocabulary with its added tokens. Raises BadRequest if llama.cpp does not support the tokenizer.

    ``tokenizer.model`` is preferred, because it has the scores that ``tokenizer.json`` only implies.
    """
    if checkpoint.has("tokenizer.model"):
        vocabulary = read_sentencepiece((checkpoint.folder / "tokenizer.model").read_bytes())
    elif checkpoint.has("tokenizer.json"):
        vocabulary = _from_json(checkpoint)
    elif checkpoint.has("vocab.txt"):
        lines = checkpoint.lines("vocab.txt")
        vocabulary = _wordpiece(checkpoint, {line: index for index, line in enumerate(lines)})
    elif checkpoint.has("vocab.json") and checkpoint.has("merges.txt"):
        vocabulary = _byte_bpe_from_files(checkpoint)
    else:
        needed = "tokenizer.json, tokenizer.model or vocab.txt is needed, or vocab.json and merges.txt"
        raise BadRequest(f"the checkpoint has no tokenizer: {needed}")
    vocabulary.add(added_tokens(checkpoint))
    space_prefix = checkpoint.json("tokenizer_config.json").get("add_prefix_space")
    if vocabulary.model == "llama" and isinstance(space_prefix, bool):
        vocabulary.flags["add_space_prefix"] = space_prefix
    return vocabulary


def _from_json(checkpoint: Checkpoint) -> CheckpointVocabulary:
    tokenizer = checkpoint.json("tokenizer.json")
    model = tokenizer.get("model")
    if not isinstance(model, dict):
        raise CorruptModel("tokenizer.json has no model")
    readers: dict[Any, Callable[[], CheckpointVocabulary]] = {
        "BPE": lambda: (
            _sentencepiece_bpe(tokenizer, model)
            if _is_sentencepiece_bpe(tokenizer, model)
            else _byte_bpe(tokenizer, model)
        ),
        "WordPiece": lambda: _wordpiece(checkpoint, _get_vocab(model), tokenizer),
        "Unigram": lambda: _unigram(tokenizer, model),
    }
    kind = model.get("type") or ("BPE" if "merges" in model else None)
    if kind not in readers:
        raise BadRequest(f"tokenizer.json has a model of type {kind!r}, which llama.cpp does not support")
    return readers[kind]()


def _get_vocab(model: dict[str, Any]) -> dict[str, int]:
    vocab = model.get("vocab")
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise CorruptModel("tokenizer.json has no vocabulary")
    return vocab


def _fill(
    vocabulary: CheckpointVocabulary, vocab: dict[str, int], kind: Callable[[str], TokenType]
) -> CheckpointVocabulary:
    for text, index in sorted(vocab.items(), key=lambda item: item[1]):
        vocabulary.put(index, text, kind(text), 0.0)
    return vocabulary


def _get_merges(model: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the merges by rank. A merge is a string with a space, or a list of two strings (which may have spaces)."""
    found = []
    merges = model.get("merges")
    for merge in merges if isinstance(merges, list) else []:
        pair = merge.split(" ", 1) if isinstance(merge, str) else merge
        if not isinstance(pair, list) or len(pair) != 2:
            raise CorruptModel(f"tokenizer.json has the merge {merge!r}, which is not a pair")
        found.append((str(pair[0]), str(pair[1])))
    return found


def _byte_bpe(tokenizer: dict[str, Any], model: dict[str, Any]) -> CheckpointVocabulary:
    """Byte-level BPE with the byte alphabet of GPT-2."""
    merges = [f"{left} {right}" for left, right in _get_merges(model)]
    empty = CheckpointVocabulary("gpt2", pretokenizer(tokenizer), [], [], merges=merges)
    return _fill(empty, _get_vocab(model), lambda text: TokenType.NORMAL)


def _byte_bpe_from_files(checkpoint: Checkpoint) -> CheckpointVocabulary:
    """Byte-level BPE from ``vocab.json`` and ``merges.txt`` of older checkpoints."""
    named = checkpoint.json("tokenizer_config.json").get("tokenizer_class")
    rule = pretokenizer_of_class(str(named or ""), str(checkpoint.config.get("model_type")))
    vocab, merges = checkpoint.json("vocab.json"), checkpoint.lines("merges.txt")
    if merges and merges[0].startswith("#version"):
        del merges[0]
    merges = [line for line in merges if line]
    if not vocab or not all(type(index) is int for index in vocab.values()):
        raise CorruptModel("vocab.json has no valid token ids")
    if wrong := next((line for line in merges if len(line.split(" ")) != 2), ""):
        raise CorruptModel(f"merges.txt has the line {wrong[:80]!r}, which is not a pair")
    vocabulary = _byte_bpe({"pre_tokenizer": rule}, {"vocab": vocab, "merges": merges})
    special = set(named_special(checkpoint).values())
    for index, text in enumerate(vocabulary.tokens):
        if text in special or looks_special(text):
            vocabulary.types[index] = TokenType.CONTROL
    return vocabulary


def _is_sentencepiece_bpe(tokenizer: dict[str, Any], model: dict[str, Any]) -> bool:
    """Return whether this is SentencePiece BPE: spaces as a symbol, and byte fallback tokens."""
    return bool(model.get("byte_fallback")) or SPACE in str(tokenizer.get("normalizer"))


def _sentencepiece_bpe(tokenizer: dict[str, Any], model: dict[str, Any]) -> CheckpointVocabulary:
    """SentencePiece BPE. llama.cpp merges by score, so each token gets the negative rank of its merge as score."""
    unknown = model.get("unk_token")

    def kind(text: str) -> TokenType:
        if _BYTE.fullmatch(text):
            return TokenType.BYTE
        return TokenType.UNKNOWN if text == unknown else TokenType.NORMAL

    vocabulary = _fill(CheckpointVocabulary("llama", "default", [], [], []), _get_vocab(model), kind)
    vocab = _get_vocab(model)
    assert vocabulary.scores is not None
    ranked: set[int] = set()
    for rank, (left, right) in enumerate(_get_merges(model)):
        index = vocab.get(left + right)
        if index is not None and index not in ranked:
            ranked.add(index)
            vocabulary.scores[index] = -float(rank)
    vocabulary.flags["add_space_prefix"] = _has_space_prefix(tokenizer)
    return vocabulary


def _has_space_prefix(tokenizer: dict[str, Any]) -> bool:
    """Return whether a space is prepended to the text."""
    text = str(tokenizer.get("normalizer"))
    step = tokenizer.get("pre_tokenizer")
    steps = [step, *step.get("pretokenizers", [])] if isinstance(step, dict) else []
    scheme = next((one.get("prepend_scheme", "always") for one in steps if one.get("type") == "Metaspace"), "never")
    return "'Prepend'" in text or scheme in ("always", "first")


def _unigram(tokenizer: dict[str, Any], model: dict[str, Any]) -> CheckpointVocabulary:
    vocab = model.get("vocab")
    if not isinstance(vocab, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in vocab):
        raise CorruptModel("tokenizer.json has no vocabulary")
    unknown = model.get("unk_id")
    types = [TokenType.UNKNOWN if index == unknown else TokenType.NORMAL for index in range(len(vocab))]
    flags: dict[str, bool | bytes] = {
        "add_space_prefix": _has_space_prefix(tokenizer) or "Metaspace" in str(tokenizer.get("pre_tokenizer")),
        "remove_extra_whitespaces": True,
    }
    if table := _character_map(tokenizer.get("normalizer")):
        flags["precompiled_charsmap"] = table
    scores = [float(score) for _, score in vocab]
    return CheckpointVocabulary("t5", "default", [str(text) for text, _ in vocab], types, scores, flags=flags)


def _character_map(step: Any) -> bytes:
    """Return the character map of a ``Precompiled`` normalizer, alone or in a sequence."""
    if not isinstance(step, dict):
        return b""
    try:
        own = base64.b64decode(step.get("precompiled_charsmap") or "")
    except (binascii.Error, TypeError) as error:
        raise CorruptModel("tokenizer.json has an invalid precompiled_charsmap") from error
    return own or next((table for one in step.get("normalizers", []) if (table := _character_map(one))), b"")


def _wordpiece(
    checkpoint: Checkpoint, vocab: dict[str, int], tokenizer: dict[str, Any] | None = None
) -> CheckpointVocabulary:
    """WordPiece. llama.cpp marks the start of words, whereas WordPiece marks continuations."""
    settings = checkpoint.json("tokenizer_config.json")
    named = {settings.get(f"{role}_token", f"[{role.upper()}]") for role in ("pad", "unk", "cls", "sep", "mask")}
    special = {name.get("content") if isinstance(name, dict) else name for name in named if not isinstance(name, dict)}
    empty = CheckpointVocabulary("bert", "default", [], [])

    def kind(text: str) -> TokenType:
        return TokenType.CONTROL if text in special else TokenType.NORMAL

    vocabulary = _fill(empty, vocab, kind)
    for index, text in enumerate(vocabulary.tokens):
        if vocabulary.types[index] is TokenType.NORMAL:
            vocabulary.tokens[index] = text[2:] if text.startswith("##") else SPACE + text
    vocabulary.flags |= _bert_normalizer((tokenizer or {}).get("normalizer"), settings)
    return vocabulary


def _bert_normalizer(step: Any, settings: dict[str, Any]) -> dict[str, bool | bytes]:
    own = step if isinstance(step, dict) and step.get("type") == "BertNormalizer" else {}
    lower = own.get("lowercase", settings.get("do_lower_case", True))
    accents = own.get("strip_accents", settings.get("strip_accents"))
    flags: dict[str, bool | bytes] = {"normalizer.lowercase": bool(lower)}
    if isinstance(accents, bool):
        flags["normalizer.strip_accents"] = accents
    return flags
