"""The parser ``passthrough``: the whole reply is content."""

from __future__ import annotations

from ollama_nb.families.card import Family, ParserSpec
from ollama_nb.reply.output import ReplyContext
from ollama_nb.reply.regions import CONTENT, RegionParser, TextRegion


def _create_parser(context: ReplyContext) -> RegionParser:
    return RegionParser({"content": TextRegion(CONTENT, {})}, "content")


FAMILY = Family(parsers={"passthrough": ParserSpec(create=_create_parser, tools=False)})
