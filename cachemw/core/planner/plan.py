"""A plan: the breakpoints of one request, their expected effect, and the reason for each.

Contains: values and sentences. Must not depend on: the planner.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cachemw.core.request.message_blocks import Path
from cachemw.core.rules.types import Ttl


class Reason(StrEnum):
    """The reason for the place of a breakpoint, or for a request without an added one."""

    TAIL = "tail"
    ANCHOR = "anchor"
    BRANCH = "branch"
    TOOLS = "end_of_tools"
    SYSTEM = "end_of_system"
    EARLIER = "earlier_tail"
    CLIENT = "client"
    BELOW_MINIMUM = "below_minimum"
    NOT_WORTH_IT = "not_worth_it"
    PENDING = "pending"
    NO_SLOT = "no_slot"
    NOTHING_MARKABLE = "nothing_markable"
    MODEL_UNKNOWN = "model_unknown"
    MODEL_AUTOMATIC = "model_automatic"
    MARKERS_IGNORED = "markers_ignored"
    PROVIDER_UNKNOWN = "provider_unknown"
    NOT_OPTIMIZING = "not_optimizing"
    UNREADABLE = "unreadable"
    REFUSED = "refused"
    FAILED = "failed"


_SENTENCES = {
    Reason.TAIL: "the conversation is likely to be sent again up to here",
    Reason.ANCHOR: "an entry is cached here, and no other breakpoint has it within its lookback",
    Reason.BRANCH: "requests share the prompt up to here and differ after it",
    Reason.TOOLS: "the tool definitions end here, and other requests share them",
    Reason.SYSTEM: "the system section ends here, and other requests share it",
    Reason.EARLIER: "an earlier turn ended here, and another request may continue from it",
    Reason.CLIENT: "the client set it",
    Reason.BELOW_MINIMUM: "the prompt is shorter than the model's minimum for caching",
    Reason.NOT_WORTH_IT: "no part of the prompt is likely enough to be read again to pay for its cache write",
    Reason.PENDING: "another request is writing the same prefix, which cannot be read yet",
    Reason.NO_SLOT: "the client's own breakpoints take all slots",
    Reason.NOTHING_MARKABLE: "no block of this request can carry a breakpoint",
    Reason.MODEL_UNKNOWN: "the model is unknown (see the setting `models`)",
    Reason.MODEL_AUTOMATIC: "this model takes no breakpoints",
    Reason.MARKERS_IGNORED: "this endpoint ignores breakpoints",
    Reason.PROVIDER_UNKNOWN: "the provider is unknown (see the setting `provider`)",
    Reason.NOT_OPTIMIZING: "the setting `mode` leaves requests as they are",
    Reason.UNREADABLE: "the body could not be read as a chat request",
    Reason.REFUSED: "the provider refused the added breakpoints, so the original request was sent",
    Reason.FAILED: "cachemw failed, so the original request was sent",
}


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A breakpoint: its path in the body, the tokens that it covers, and its reason.

    `from_client` is True if the client set it.
    """

    path: Path
    block: int
    ttl: Ttl
    prefix_tokens: int
    reason: Reason
    from_client: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The breakpoints of a request, and the tokens that they are expected to read and write.

    `hit` is the last block of the entry that is expected to be read, None if none is. `skipped` says why no
    breakpoint was added.
    """

    breakpoints: tuple[Breakpoint, ...] = ()
    cache_read: int = 0
    cache_write_5m: int = 0
    cache_write_1h: int = 0
    uncached: int = 0
    skipped: Reason | None = None
    hit: int | None = None

    @property
    def total(self) -> int:
        """Return the estimate of all input tokens."""
        return self.cache_read + self.cache_write_5m + self.cache_write_1h + self.uncached

    @property
    def added(self) -> tuple[Breakpoint, ...]:
        """Return the breakpoints that the client did not set."""
        return tuple(point for point in self.breakpoints if not point.from_client)

    def explain(self) -> str:
        """Return the expected tokens and the reason for each breakpoint, in sentences."""
        if self.skipped and not self.breakpoints:
            return f"No breakpoint: {_SENTENCES[self.skipped]}."
        lines = [
            f"Expected tokens: {self.cache_read} cache read, "
            f"{self.cache_write_5m + self.cache_write_1h} cache write, {self.uncached} uncached."
        ]
        lines += [
            f"{'.'.join(map(str, point.path))} ({point.ttl}, {point.prefix_tokens} tokens): "
            f"{_SENTENCES[point.reason]}."
            for point in self.breakpoints
        ]
        if self.skipped:
            lines.append(f"No breakpoint added: {_SENTENCES[self.skipped]}.")
        return "\n".join(lines)
