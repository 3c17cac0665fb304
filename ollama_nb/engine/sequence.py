"""One request, and its tokens as the model reads them.

Rule: ``tokens`` is the window that lies in the model's memory, followed by what is still to be read; the first
``n_past`` of them have been read. Whatever happens (prefill, decode, shift, recompute), the next thing to do is to read
``tokens[n_past:]``. Pure: no llama.cpp, no numpy, no clock.
"""

from __future__ import annotations

import enum

import msgspec

from ollama_nb.api.options import Options
from ollama_nb.engine.adapters import Adapters
from ollama_nb.errors import ContextOverflow

MIN_CONTEXT = 4
OPEN_ENDED = 10
"""An open-ended reply may be this many contexts long."""

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)


class Request(msgspec.Struct, frozen=True, tag="complete", kw_only=True):
    """Generate from a prompt text (special tokens parsed) or from ``tokens``. ``id`` is set by the side that sends it.

    ``logprobs`` -1: off, else how many top ones. ``format``: empty, ``json``, a JSON Schema as text, or ``grammar:``,
    ``regex:``, ``choices:`` (a JSON list) and what belongs to it. ``shift``: discard old context when it is full.
    ``num_ctx``: this request's own limit, at most the loaded one (0: the loaded one). ``preserve``: special tokens that
    stay visible in the text. ``adapters``: what the model is changed by, for this request only.
    """

    id: int = 0
    prompt: str = ""
    tokens: tuple[int, ...] = ()
    options: Options = msgspec.field(default_factory=Options)
    num_ctx: int = 0
    shift: bool = True
    truncate: bool = True
    logprobs: int = -1
    format: str = ""
    return_tokens: bool = False
    preserve: tuple[str, ...] = ()
    adapters: Adapters = ()


class State(enum.Enum):
    """The life of a sequence, in this order; a shift that must recompute goes back to PREFILL."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Sequence:
    """Tokens, limits and place of one running request."""

    __slots__ = (
        "adapters", "cached", "dropped", "exact", "held", "id", "keep", "leader", "leader_at", "limit", "max_new",
        "n_new", "n_past", "n_prompt", "shift", "slot", "state", "tokens",
    )  # fmt: skip

    def __init__(
        self,
        id: int,
        tokens: list[int],
        *,
        limit: int,
        keep: int = 0,
        shift: bool = True,
        max_new: int = 1 << 30,
        adapters: Adapters = (),
    ) -> None:
        self.id = id
        self.tokens = tokens
        self.adapters = adapters
        self.limit = limit
        """Window size: never more tokens than this."""
        self.keep = keep
        """Tokens at the front that a shift leaves alone."""
        self.shift = shift
        self.max_new = max_new
        self.n_prompt = len(tokens)
        self.n_past = 0
        self.n_new = 0
        self.exact: int | None = None
        """After a shift: how many tokens at the front were read in the order in which they stand."""
        self.cached = 0
        """Prompt tokens that needed no computing."""
        self.dropped = 0
        """Prompt tokens left out because the prompt was too long."""
        self.slot = -1
        self.state = State.WAITING
        self.leader: Sequence | None = None
        """While waiting: a sequence that is just reading the same prefix, to be shared at ``leader_at`` tokens."""
        self.leader_at = 0
        self.held = False
        """While waiting: its prefix is on its way from the disk."""

    @property
    def pending(self) -> int:
        """How many tokens are still to be read."""
        return len(self.tokens) - self.n_past

    @property
    def reusable(self) -> int:
        """How many tokens at the front lie in memory just as a fresh reading would put them."""
        return self.n_past if self.exact is None else min(self.exact, self.n_past)

    @property
    def full(self) -> bool:
        """No room is left for another token."""
        return len(self.tokens) >= self.limit

    def append(self, token: int) -> None:
        """Take a sampled token, to be read next."""
        self.tokens.append(token)
        self.n_new += 1

    def accept(self) -> None:
        """The newest token was read already, as a draft."""
        self.n_past += 1

    def room(self) -> int:
        """How many tokens could be drafted beyond the next one: window and reply bound them."""
        return min(self.limit - len(self.tokens), self.max_new - self.n_new) - 1

    def discard_half(self) -> int:
        """Drop the older half of what is not protected from the window; return how many tokens that was."""
        count = max((self.limit - self.keep) // 2, 1)
        del self.tokens[self.keep : self.keep + count]
        self.n_past -= count
        self.exact = self.keep if self.exact is None else min(self.exact, self.keep)
        return count


def protected_tokens(num_keep: int, n_prompt: int, limit: int, *, bos: bool) -> int:
    """How many tokens at the front survive cuts: ``num_keep`` and one for BOS; negative: the prompt."""
    keep = n_prompt if num_keep < 0 else num_keep + bos
    return max(0, min(keep, n_prompt, limit - 2))


def fit_prompt(tokens: list[int], limit: int, keep: int, *, may_drop: bool) -> list[int]:
    """The prompt as it goes to the model: whole, or its first ``keep`` and its newest tokens, half the rest left free.

    Raises ContextOverflow when it is too long and nothing may be dropped.
    """
    if len(tokens) < limit:
        return tokens
    if not may_drop:
        raise ContextOverflow(TOO_LONG)
    room = limit - max((limit - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (room - keep) :]


def max_reply_tokens(num_predict: int, limit: int) -> int:
    """Most tokens of a reply: negative means until it stops, which is bounded too; 0 only reads the prompt."""
    longest = OPEN_ENDED * limit
    return longest if num_predict < 0 else min(num_predict, longest)
