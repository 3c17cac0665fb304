"""Make the goldens of tests/store/convert: small tokenizers, 200 texts with their tokens, logits of every family.

Run by hand, in an environment of its own with torch, transformers, tokenizers and sentencepiece:
    python tests/golden/convert/make.py
"""

from __future__ import annotations

import io
import random
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent.parent))

from support.checkpoints import FAMILIES, copy_tokenizer, make_checkpoint, write_json  # noqa: E402

WORDS, CHINESE = (line.split() for line in (HERE / "words.txt").read_text("utf-8").splitlines())
OTHER = [
    "🚀",
    "😀",
    "👍🏽",
    "👩‍💻",
    "❤️",
    "🇨🇳",
    "日本語",
    "한국어",
    "Привет",
    "مرحبا",
    "ελληνικά",
    "→",
    "©",
    "½",
    "\u00a0",
]


def texts() -> list[str]:
    """Single fragments first, then mixtures, then what is at the edges."""
    draw = random.Random(7)
    edges = [
        "",
        " ",
        "  ",
        "\n",
        "\n\n",
        "\t",
        " a",
        "a ",
        "  a  b ",
        "a\nb",
        "a\r\nb",
        "1234567",
        "'S 'll",
        "...",
        "x" * 20,
    ]
    mixed = []
    while len(mixed) < 200 - len(edges) - len(OTHER):
        pools = draw.choice(
            [[WORDS], [CHINESE], [WORDS, CHINESE], [WORDS, OTHER], [CHINESE, OTHER], [WORDS, CHINESE, OTHER]]
        )
        pieces = [draw.choice(draw.choice(pools)) for _ in range(draw.randint(1, 6))]
        mixed.append(draw.choice(["", " ", " ", "\n"]).join(pieces))
    return edges + OTHER + mixed


def corpus() -> list[str]:
    draw = random.Random(1)
    return [" ".join(draw.choice(draw.choice([WORDS, CHINESE])) for _ in range(12)) for _ in range(2000)]


def make_bpe(folder: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=620, special_tokens=["<|begin|>", "<s>", "</s>", "<|im_start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
    )  # fmt: skip
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(["<tool_call>"])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% endfor %}"
    settings = {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False, "chat_template": template}
    write_json(folder / "tokenizer_config.json", settings)


def make_sentencepiece(folder: Path, spaced: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_writer=model, model_type="bpe", vocab_size=600, byte_fallback=True,
        character_coverage=0.999, normalization_rule_name="identity", remove_extra_whitespaces=False, pad_id=-1,
        user_defined_symbols=["<tool_call>"], minloglevel=2, num_threads=1,
    )  # fmt: skip
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    settings = {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "add_bos_token": True,
        "add_eos_token": False,
    }
    write_json(folder / "tokenizer_config.json", settings)
    fast = transformers.LlamaTokenizerFast(str(folder / "tokenizer.model"), legacy=True)
    spaced.mkdir(exist_ok=True)
    fast.backend_tokenizer.save(str(spaced / "tokenizer.json"), pretty=False)
    write_json(spaced / "tokenizer_config.json", settings)


def make_wordpiece(folder: Path) -> None:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    names = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    write_json(folder / "tokenizer_config.json", {**names, "do_lower_case": True})
    vocab = tokenizer.get_vocab()
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word in sorted(vocab, key=vocab.get)), "utf-8")


def make_unigram(folder: Path) -> None:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Precompiled(table_of_characters())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    trainer = trainers.UnigramTrainer(vocab_size=600, special_tokens=special, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(corpus(), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"), pretty=False)
    settings = {"bos_token": "<s>", "eos_token": "</s>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
    write_json(folder / "tokenizer_config.json", settings)


def table_of_characters() -> bytes:
    """What SentencePiece compiles of rules: here all kinds of space become one, and wide letters narrow ones."""
    rules = {"\t": " ", "\n": " ", "\r": " ", "\u00a0": " ", "\uff0c": ",", "\uff01": "!", "\u00bd": "1/2"}
    with tempfile.TemporaryDirectory() as temp:
        table = Path(temp) / "rules.tsv"
        lines = ("\t".join(" ".join(f"{ord(mark):X}" for mark in side) for side in rule) for rule in rules.items())
        table.write_text("".join(f"{line}\n" for line in lines), "utf-8")
        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus()), model_writer=model, model_type="unigram", vocab_size=200,
            normalization_rule_tsv=str(table), minloglevel=2, num_threads=1, character_coverage=0.999,
        )  # fmt: skip
    from sentencepiece import sentencepiece_model_pb2

    proto = sentencepiece_model_pb2.ModelProto()
    proto.ParseFromString(model.getvalue())
    return bytes(proto.normalizer_spec.precompiled_charsmap)


def tokens_of(name: str, sentences: list[str]) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as temp:
        copy_tokenizer(name, Path(temp))
        if name == "sentencepiece":
            processor = sentencepiece.SentencePieceProcessor(model_file=f"{temp}/tokenizer.model")
            return [processor.encode(sentence) for sentence in sentences]
        tokenizer = Tokenizer.from_file(f"{temp}/tokenizer.json")
        return [tokenizer.encode(sentence, add_special_tokens=False).ids for sentence in sentences]


def logits_of(family: str, tokens: list[int]) -> np.ndarray[Any, Any]:
    """Decoders: the logits behind the last token. Encoders: the mean of the last hidden states."""
    with tempfile.TemporaryDirectory() as temp:
        make_checkpoint(family, Path(temp))
        name = FAMILIES[family][0]["architectures"][0]
        model, loading = getattr(transformers, name).from_pretrained(
            temp, torch_dtype=torch.float32, attn_implementation="eager", output_loading_info=True
        )
        assert not loading["missing_keys"] and not loading["unexpected_keys"], (family, loading)
        assert not loading["mismatched_keys"], (family, loading)
        with torch.no_grad():
            out = model.eval()(torch.tensor([tokens]))
        answer = out.logits[0, -1] if hasattr(out, "logits") else out.last_hidden_state[0].mean(0)
        return answer.numpy().astype(np.float32)


def main() -> None:
    if "--tokenizers" in sys.argv:
        make_bpe(HERE / "bpe")
        make_sentencepiece(HERE / "sentencepiece", HERE / "spaced")
        make_wordpiece(HERE / "wordpiece")
        make_unigram(HERE / "unigram")
    sentences = texts()
    names = ["bpe-llama3", "bpe-qwen2", "bpe-gpt2", "bpe-smollm", "sentencepiece", "spaced", "wordpiece", "unigram"]
    tokens = {name: tokens_of(name, sentences) for name in names}
    write_json(HERE / "tokens.json", {"texts": sentences, "tokens": tokens})
    prompt = [int(token) for token in np.random.default_rng(3).integers(5, 600, 24)]
    answers = {family: [round(float(value), 5) for value in logits_of(family, prompt)] for family in FAMILIES}
    write_json(HERE / "logits.json", {"prompt": prompt, "answers": answers})


if __name__ == "__main__":
    main()
