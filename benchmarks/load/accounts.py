"""Account for a run: lost, changed, crossed and late requests, and the share that was saved.

Contains: pure functions over the requests at the client and at the provider. Must not depend on: processes,
clocks, HTTP.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from benchmarks.load.provider import ERRORS, Received
from cachemw.core.rules.model_names import find_model
from cachemw.core.rules.resolve import relative_prices

Fate = Literal["answered", "lost", "killed", "hang", "crossed", "changed"]

# The status that a client is due for each fault of the provider; 502 and 504 are the proxy's own answers.
DUE = {
    "": 200,
    "slow": 200,
    "no usage": 200,
    "never": 504,
    "closed": 502,
    **{name: int(name) for name in ERRORS},
}
BROKEN = ("half", "stall")  # the provider breaks its answer off, so the client must see a broken one
LATE = 1.0  # seconds
_AFTER_KILL = 1.0  # seconds in which a client may still use a connection whose worker was killed


@dataclass(slots=True)
class Sample:
    """One request of a client. `echoed`: its answer bears its own number; `port` is the client's."""

    number: int
    key: str
    digest: str
    fault: str = ""
    good: bool = True
    label: str = ""
    began: float = 0.0
    ended: float = 0.0
    port: int = 0
    status: int = 0
    complete: bool = False
    echoed: bool = True
    error: str = ""

    @property
    def seconds(self) -> float:
        """Return how long the client waited for the complete answer."""
        return self.ended - self.began


@dataclass(frozen=True, slots=True)
class Kill:
    """A worker that was killed: when, and the clients' ports of the connections that it held."""

    at: float
    ports: frozenset[int]

    def took(self, sample: Sample) -> bool:
        """Return True if a request was on a connection of this worker when the worker was killed."""
        return sample.port in self.ports and sample.began <= self.at + _AFTER_KILL and sample.ended >= self.at


def fate(sample: Sample, kills: Sequence[Kill] = ()) -> Fate:
    """Return how a request of a good tenant ended.

    - hang: no end within the client's deadline.
    - killed: no complete answer, on a connection whose worker was killed meanwhile: the kill lost it, not the proxy.
    - crossed: the answer bears the number of another request.
    - changed: an answer that the provider broke off looks complete to the client.
    - lost: the client did not get the answer that the provider gave, or the proxy's own 502 or 504 where the
      provider gave none.
    - answered: all else.
    """
    if sample.error == "deadline":
        return "hang"
    if sample.fault in BROKEN:
        wrong: Fate = "changed" if sample.status == 200 and sample.complete else "lost"
        right = not sample.complete and sample.status in (0, 200)
    else:
        right = sample.complete and sample.status == DUE[sample.fault]
        wrong = "lost"
    if not right and any(kill.took(sample) for kill in kills):
        return "killed"
    if right and sample.status not in (0, 502, 504) and not sample.echoed:
        return "crossed"
    return "answered" if right else wrong


@dataclass
class Account:
    """The figures of one phase. Times are seconds, shares are of the input's price without caching."""

    requests: int = 0
    hostile: int = 0
    fates: Counter[str] = field(default_factory=Counter)
    hostile_hangs: int = 0
    changed: int = 0
    crossed: int = 0
    times: list[float] = field(default_factory=list)
    saved: float = 0.0
    late: int = 0
    examples: list[str] = field(default_factory=list)

    def quantile(self, share: float) -> float:
        """Return a quantile of the seconds of unharmed requests, 0 without any."""
        return self.times[min(int(len(self.times) * share), len(self.times) - 1)] if self.times else 0.0

    def broken(self) -> list[str]:
        """Return each promise that does not hold, as a sentence."""
        figures = {
            "lost": self.fates["lost"],
            "changed": self.changed + self.fates["changed"],
            "over their deadline": self.fates["hang"] + self.hostile_hangs,
            "crossed to another tenant": self.crossed + self.fates["crossed"],
        }
        return [f"{count} requests {words}" for words, count in figures.items() if count]


def account(
    samples: Iterable[Sample], received: Iterable[Received], kills: Sequence[Kill], model: str
) -> Account:
    """Return the figures of one phase from the sent requests, the received ones, and the killed workers.

    Only requests without a fault of the provider count for the times; only those of good tenants for fates, times
    and savings. Bodies are compared for all, and an arrival with another request's key is a crossing.
    """
    found, sent = Account(), {sample.number: sample for sample in samples}
    rows = list(received)
    for sample in sent.values():
        if not sample.good:
            found.hostile += 1
            found.hostile_hangs += sample.error == "deadline"
            continue
        found.requests += 1
        how = fate(sample, kills)
        found.fates[how] += 1
        if how not in ("answered", "killed") and len(found.examples) < 5:
            found.examples.append(f"{how}: {sample}")
        if how == "answered" and sample.fault in ("", "no usage"):
            found.times.append(sample.seconds)
    found.times.sort()
    found.late = sum(seconds > LATE for seconds in found.times)
    for row in rows:
        origin = sent.get(row.number)
        if origin is not None and origin.digest != row.digest:
            found.changed += 1
            found.examples.append(f"changed: {origin}, received {row}")
        if origin is not None and origin.key != row.key:
            found.crossed += 1
    billed = [row for row in rows if row.number in sent and sent[row.number].good and row.status == 200]
    found.saved = saved(billed, model)
    return found


def saved(rows: Iterable[Received], model: str) -> float:
    """Return the share that the provider's bill saves of the input's uncached price, by five-minute prices."""
    row = find_model(model)
    write, _, read = relative_prices(None if row is None else row.prices)
    plain = paid = 0.0
    for one in rows:
        plain += one.prompt
        paid += one.prompt - (1 - read) * one.read + (write - 1) * one.written
    return 1 - paid / plain if plain else 0.0


Plans = Mapping[int, Sequence[str]]


def plans(rows: Iterable[Received]) -> dict[int, list[str]]:
    """Return the breakpoints of each request, by its number."""
    return {row.number: row.breakpoints for row in rows}


def crossings(one: Plans, other: Plans, beside: Plans) -> tuple[list[int], int]:
    """Compare good tenants' breakpoints beside hostile tenants with two control runs of the same seed.

    Returns the requests with other breakpoints than both control runs agree on, and the number on which the control
    runs disagree: as many differences come from timing alone.
    """
    numbers = one.keys() & other.keys() & beside.keys()
    agreed = {number for number in numbers if one[number] == other[number]}
    differing = sorted(number for number in agreed if beside[number] != one[number])
    return differing, len(numbers) - len(agreed)


def unreported(samples: Iterable[Sample], reported: Mapping[str, int]) -> int:
    """Return how many answered calls of good tenants the report does not show under their own label.

    `reported` has the calls by label, as in `app=search`.
    """
    due = Counter(sample.label for sample in samples if sample.good and fate(sample) == "answered")
    return sum(max(0, calls - reported.get(label, 0)) for label, calls in due.items())
