"""A sequence: the tokens of a request as the model reads them. Pure: no llama.cpp, no numpy, no clock."""

from __future__ import annotations

import enum

from ollama_nb.engine.fairness import Kind
from ollama_nb.engine.messages import Adapters
from ollama_nb.errors import ContextOverflow

MAX_WINDOWS = 10  # length of a reply without num_predict, in context windows

TOO_LONG = (
    "the prompt is longer than the context length currently available to the model; shorten the prompt, adjust the "
    "context length in settings, or use a model with a longer context length"
)


class SequenceState(enum.Enum):
    """State of a sequence; ``scheduler`` has the transitions."""

    WAITING = "waiting"
    PREFILL = "prefill"
    DECODE = "decode"
    FINISHED = "finished"


class Sequence:
    """Tokens, limits and progress of one request.

    ``tokens`` is the window: the first ``n_past`` of its tokens are in the KV cache, the others are still to be read.
    Whatever happens (prefill, decode, shift, recompute), the next thing to do is to read ``tokens[n_past:]``.
    """

    __slots__ = (
        "adapters", "background", "cached", "client", "dropped", "exact", "group", "id", "keep", "leader", "leader_at",
        "limit", "loading", "max_new", "n_new", "n_past", "n_prompt", "preempted", "shift", "slot", "state", "tokens",
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
        group: int = 0,
        background: bool = False,
        client: str = "",
    ) -> None:
        self.id = id
        self.tokens = tokens
        self.adapters = adapters
        self.group = group
        """Sequences of one group (0: none) have the same prompt, which the first one reads for all."""
        self.background = background
        """It only runs while no other sequence does."""
        self.client = client
        """On whose behalf it runs; see ``fairness``."""
        self.limit = limit
        """Most tokens of the window."""
        self.keep = keep
        """Tokens at the front that a shift does not drop."""
        self.shift = shift
        self.max_new = max_new
        self.n_prompt = len(tokens)
        self.n_past = 0
        self.n_new = 0
        self.exact: int | None = None
        """After a shift: tokens at the front whose cells are as a fresh prefill would compute them. None: all."""
        self.cached = 0
        """Prompt tokens that were taken from a cache."""
        self.dropped = 0
        """Tokens that were left out of a prompt that was too long."""
        self.slot = -1
        self.state = SequenceState.WAITING
        self.leader: Sequence | None = None
        """While waiting: the sequence that is reading the same prefix, shared when it has read ``leader_at`` tokens."""
        self.leader_at = 0
        self.loading = False
        """While waiting: a prefix is being loaded from disk."""
        self.preempted = False
        """It has lost its slot at least once; ``cached`` and times are those of its first one."""

    @property
    def kind(self) -> Kind:
        return Kind.BACKGROUND if self.background else Kind.INTERACTIVE

    @property
    def pending(self) -> int:
        """Tokens that are still to be read."""
        return len(self.tokens) - self.n_past

    @property
    def reusable(self) -> int:
        """Tokens at the front that another sequence may reuse from the KV cache."""
        return self.n_past if self.exact is None else min(self.exact, self.n_past)

    @property
    def full(self) -> bool:
        """Whether the window has no room for another token."""
        return len(self.tokens) >= self.limit

    def append(self, token: int) -> None:
        """Add a sampled token, to be read next."""
        self.tokens.append(token)
        self.n_new += 1

    def accept(self) -> None:
        """Record that the newest token was already read, as a draft."""
        self.n_past += 1

    def room(self) -> int:
        """Return how many tokens may follow the next one within the window and the reply's limit."""
        return min(self.limit - len(self.tokens), self.max_new - self.n_new) - 1

    def discard_half(self) -> int:
        """Drop the older half of the unprotected tokens from the window; return how many were dropped."""
        count = max((self.limit - self.keep) // 2, 1)
        del self.tokens[self.keep : self.keep + count]
        self.n_past -= count
        self.exact = self.keep if self.exact is None else min(self.exact, self.keep)
        return count


def protected_tokens(num_keep: int, n_prompt: int, limit: int, *, bos: bool) -> int:
    """Return how many tokens at the front are never dropped: ``num_keep`` and BOS; all of the prompt if negative."""
    keep = n_prompt if num_keep < 0 else num_keep + bos
    return max(0, min(keep, n_prompt, limit - 2))


def fit_prompt(tokens: list[int], limit: int, keep: int, *, may_drop: bool) -> list[int]:
    """Return the prompt, without its middle if it is too long: its first ``keep`` and its last tokens remain.

    Half of the unprotected window is then left free. Raises ContextOverflow if nothing may be dropped.
    """
    if len(tokens) < limit:
        return tokens
    if not may_drop:
        raise ContextOverflow(TOO_LONG)
    room = limit - max((limit - keep) // 2, 1)
    return tokens[:keep] + tokens[len(tokens) - (room - keep) :]


def max_reply_tokens(num_predict: int, limit: int) -> int:
    """Return the most tokens of a reply. Negative: until it stops, up to a limit; 0: only the prompt is read."""
    longest = MAX_WINDOWS * limit
    return longest if num_predict < 0 else min(num_predict, longest)
