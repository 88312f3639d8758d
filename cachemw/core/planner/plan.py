"""A plan: the breakpoints of one request, what they are expected to do, and why each is there.

Lives here: values and sentences. Must not know: how a plan is made.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from cachemw.core.request.message_blocks import Path
from cachemw.core.rules.types import Ttl


class Reason(StrEnum):
    """Why a breakpoint is where it is, or why a request has none of ours."""

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
    Reason.TAIL: "the conversation up to here is likely to be sent again",
    Reason.ANCHOR: "the provider holds an entry here that no other breakpoint would find",
    Reason.BRANCH: "requests share everything up to here and part after it",
    Reason.TOOLS: "the tool definitions end here, and other requests share them",
    Reason.SYSTEM: "the system section ends here, and other requests share it",
    Reason.EARLIER: "an earlier turn ended here, and a request may go on from it",
    Reason.CLIENT: "the client set it",
    Reason.BELOW_MINIMUM: "the prompt is shorter than what the model caches",
    Reason.NOT_WORTH_IT: "what could be written is not likely enough to be read again",
    Reason.PENDING: "another request is just writing the same prefix, and can't be read yet",
    Reason.NO_SLOT: "the client's own markers take all there are",
    Reason.NOTHING_MARKABLE: "no block can carry a marker here",
    Reason.MODEL_UNKNOWN: "no row, pattern or setting says what this model is",
    Reason.MODEL_AUTOMATIC: "this model takes no breakpoints",
    Reason.MARKERS_IGNORED: "this endpoint ignores markers",
    Reason.PROVIDER_UNKNOWN: "nothing says which provider this is",
    Reason.NOT_OPTIMIZING: "the mode leaves requests as they are",
    Reason.UNREADABLE: "the body can't be read as a chat request",
    Reason.REFUSED: "the provider refused our markers, so the request went again as it came",
    Reason.FAILED: "something of ours failed, so the request went as it came",
}


@dataclass(frozen=True, slots=True)
class Breakpoint:
    """A marker: where it stands, what it covers, and why. `own`: the client's own."""

    path: Path
    block: int
    ttl: Ttl
    prefix_tokens: int
    reason: Reason
    from_client: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """The breakpoints of a request, and the tokens that they are expected to read and write.

    `hit` is the block whose entry is expected to be read, None where nothing is.
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
        """All input tokens, as estimated."""
        return self.cache_read + self.cache_write_5m + self.cache_write_1h + self.uncached

    @property
    def added(self) -> tuple[Breakpoint, ...]:
        """The breakpoints that the client did not set."""
        return tuple(point for point in self.breakpoints if not point.from_client)

    def explain(self) -> str:
        """Say in sentences what is expected and why."""
        if self.skipped and not self.breakpoints:
            return f"No breakpoint: {_SENTENCES[self.skipped]}."
        lines = [
            f"Expected: {self.cache_read} tokens read, {self.cache_write_5m + self.cache_write_1h} written, {self.uncached} plain."
        ]
        lines += [
            f"{'.'.join(map(str, point.path))} ({point.ttl}, {point.prefix_tokens} tokens): "
            f"{_SENTENCES[point.reason]}."
            for point in self.breakpoints
        ]
        if self.skipped:
            lines.append(f"None of ours: {_SENTENCES[self.skipped]}.")
        return "\n".join(lines)
