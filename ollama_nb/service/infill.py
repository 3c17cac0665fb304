"""The prompt of POST /infill: text before and after a gap, marked with the model's own fill-in-the-middle tokens.

The files of the project come first, if there is room: those at the end of the list are nearest to the gap and are kept
longest. A model without such tokens uses the suffix of its Go template.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ollama_nb.api.requests import GenerateRequest, Infill
from ollama_nb.runner import wire
from ollama_nb.runner.pool import Lease
from ollama_nb.service.prompt import Prompt

_PROJECT = "project\n"  # after the token that begins a repository; models expect a name and none is known
_CURRENT = "current\n"  # name of the file with the gap
_REPLY_SHARE = 4  # of the context, one part is for the reply, unless the request has a smaller limit
_SUFFIX_SHARE = 4  # of the room around the gap, one part is for the text after it

Ids = tuple[int, ...]


async def fill_tokens(infill: Infill, lease: Lease, num_predict: int) -> Prompt | None:
    """The prompt as token ids, shortened to fit; None if the model has no tokens that mark a gap.

    The texts are tokenized without special tokens: code that contains such a token's text is only text.
    """
    fim = lease.loaded.fim
    if fim is None:
        return None
    heads = [f"{file.name}\n" if fim.marks_files else "" for file in infill.files]
    texts = (infill.prefix, infill.suffix, _PROJECT, _CURRENT, *heads, *(file.text for file in infill.files))
    found = await lease.runner.tokenize(texts, add_special=False, parse_special=False)
    prefix, suffix, project, current = found[:4]
    names, contents = found[4 : 4 + len(heads)], found[4 + len(heads) :]
    files = [_file(fim, name, content) for name, content in zip(names, contents, strict=True)]
    bos = (await lease.runner.tokenize(("",)))[0][:1] if lease.loaded.add_bos else ()
    before: Ids = (*bos, fim.repository, *project) if files and fim.marks_files else bos
    after: Ids = (fim.separator, *current) if files and fim.marks_files else ()
    share = lease.num_ctx // _REPLY_SHARE
    reply = share if num_predict < 0 else min(num_predict, share)
    room = max(1, lease.num_ctx - 1 - len(before) - len(after) - 3 - reply)
    kept_prefix, kept_suffix = _around_gap(prefix, suffix, room)
    kept_files = _newest(files, room - len(kept_prefix) - len(kept_suffix))
    ids = (*before, *kept_files, *after, fim.prefix, *kept_prefix, fim.suffix, *kept_suffix, fim.middle)
    whole = sum(map(len, (prefix, suffix, *files)))
    dropped = whole - len(kept_prefix) - len(kept_suffix) - len(kept_files)
    return Prompt("", len(ids), tokens_dropped=dropped, ids=ids)


def as_suffix(request: GenerateRequest, infill: Infill) -> GenerateRequest:
    """The same request for a template with a suffix: the files come before the prefix."""
    files = "".join(f"{file.text}\n" for file in infill.files)
    return replace(request, infill=None, prompt=files + infill.prefix, suffix=infill.suffix)


def _file(fim: wire.FillTokens, name: Ids, content: Ids) -> Ids:
    return (fim.separator, *name, *content) if fim.marks_files else content


def _around_gap(prefix: Ids, suffix: Ids, room: int) -> tuple[Ids, Ids]:
    """The end of the prefix and the beginning of the suffix. What one of them does not need, the other one gets."""
    after = min(len(suffix), max(room // _SUFFIX_SHARE, room - len(prefix)))
    before = min(len(prefix), room - after)
    return prefix[len(prefix) - before :], suffix[:after]


def _newest(files: Sequence[Ids], room: int) -> Ids:
    """The files that fit, from the last one backwards, joined in their order."""
    kept: list[Ids] = []
    for file in reversed(files):
        room -= len(file)
        if room < 0:
            break
        kept.insert(0, file)
    return tuple(token for file in kept for token in file)
