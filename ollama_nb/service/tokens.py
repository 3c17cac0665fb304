"""POST /api/tokenize and /api/detokenize: text to tokens and back, without loading weights.

If the model is loaded, its runner is used; otherwise a runner that holds only the vocabulary.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from ollama_nb.api.models import Model
from ollama_nb.api.requests import ChatRequest, TokenizeRequest
from ollama_nb.errors import BadRequest, RunnerCrashed
from ollama_nb.runner.process import Runner
from ollama_nb.service.backend import Backend
from ollama_nb.service.chat import chat_job
from ollama_nb.service.generation import new_generation
from ollama_nb.service.resolve import find, weights_header


async def tokenize(backend: Backend, request: TokenizeRequest) -> tuple[int, ...]:
    """Return the tokens of a prompt as it is, or of a whole chat as it would be rendered.

    Raises ModelNotFound, BadRequest, TemplateError.
    """
    if not request.model:
        raise BadRequest("model is required")
    if request.messages and request.prompt is not None:
        raise BadRequest('give either "prompt" or "messages", not both')
    model = await find(backend, request.model)
    if request.prompt is not None:
        async with _vocabulary(backend, model, request.model) as runner:
            return await _tokens(runner, request.prompt, request.add_special, request.parse_special)
    if not request.messages:
        raise BadRequest('give "prompt" or "messages": this request has nothing to count')
    async with _rendered(backend, model, request) as (text, runner):
        return await _tokens(runner, text, True, True)


async def render(backend: Backend, request: TokenizeRequest) -> str:
    """Return the prompt of a chat. Raises ModelNotFound, BadRequest, TemplateError."""
    async with _rendered(backend, await find(backend, request.model), request) as (text, _):
        return text


async def detokenize(backend: Backend, model_text: str, tokens: Sequence[int]) -> str:
    """Return the text of tokens, special tokens included. Raises ModelNotFound, BadRequest for an invalid token."""
    if not model_text:
        raise BadRequest("model is required")
    model = await find(backend, model_text)
    async with _vocabulary(backend, model, model_text) as runner:
        return await text_of(runner, tokens, model_text)


async def text_of(runner: Runner, tokens: Sequence[int], model_text: str) -> str:
    """Return the text of tokens from a client. Raises BadRequest for an invalid token."""
    check_ids(runner, tokens, model_text)
    return await runner.detokenize(tokens)


def check_ids(runner: Runner, tokens: Sequence[int], model_text: str) -> None:
    """Raise BadRequest for an id that is not a token of the model."""
    count = runner.loaded.n_vocab
    for token in tokens:
        if not 0 <= token < count:
            raise BadRequest(f'{token} is not a token of "{model_text}": its tokens are 0 to {count - 1}')


@asynccontextmanager
async def _rendered(backend: Backend, model: Model, request: TokenizeRequest) -> AsyncIterator[tuple[str, Runner]]:
    """The prompt of a chat, and a runner with the vocabulary of its model."""
    chat = ChatRequest(model=request.model, messages=request.messages, tools=request.tools, think=request.think)
    generation = await new_generation(backend, chat, model, "chat", needs=("tools",) if request.tools else ())
    async with _vocabulary(backend, model, request.model) as runner:
        yield (await backend.renderer.render(chat_job(chat, generation, runner.loaded)))[0], runner


async def _tokens(runner: Runner, text: str, add_special: bool, parse_special: bool) -> tuple[int, ...]:
    return (await runner.tokenize((text,), add_special=add_special, parse_special=parse_special))[0]


@asynccontextmanager
async def _vocabulary(backend: Backend, model: Model, text: str) -> AsyncIterator[Runner]:
    await weights_header(backend, model, text)
    assert model.weights is not None
    loaded = backend.pool.loaded(model)
    if loaded is not None:
        try:
            yield loaded
        except RunnerCrashed:  # the model was unloaded meanwhile
            if loaded.alive:
                raise
            raise RunnerCrashed(f'"{text}" was unloaded while its tokens were counted, please try again') from None
        return
    async with backend.vocabularies.borrow(model.weights) as runner:
        yield runner
