"""How likely a prefix is to be read again: from its own record, and from what happened to others like it.

Lives here: which class a prefix is in, what each arrival shows, and the chances that follow. Must not
know: stores, prices, plans. What is learned is kept in the object; time is an argument. `forecast` changes nothing;
`observe` counts what a request showed, once the provider has accepted it.

A class is the place and role of a prefix's last block, how often it was seen, and how long ago. It is counted
for all traffic, for its stage of a conversation, its tools, its tools with system, and the very turn; each level
is drawn towards the one above as far as it has few trials.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple, cast

from cachemw.core.request.parser import ParsedRequest
from cachemw.core.reuse.cohorts import CohortName, CohortTable, TrialEnd
from cachemw.core.reuse.record import FIVE_MINUTES, ONE_HOUR, PrefixRecord
from cachemw.core.rules.types import Ttl

# Chances before anything is known, worth two observations. An agent with tools or a conversation in
# progress is likely to go on within minutes; a single turn without tools is not; a whole prompt that
# comes again is a retry, not the start of a series.
_RUNNING, _SINGLE, _SINGLE_HEAD, _REPEAT = 0.6, 0.1, 0.3, 0.2
# A prefix's own record counts from its fourth arrival: its first reuse must not vouch for itself. From
# the eighth on it speaks for itself alone, and no longer for its class.
_OWN_FROM, _ALONE_FROM = 4, 8
_OWN_PRIOR = 4.0
_OWN_LATE_PRIOR = 16.0
_KNOWN = 0.5
# A chance is never so sure that more reads than this are expected.
_SURE = 0.98


_made = tuple.__new__  # what the class's own constructor does, a third faster


class PrefixForecast(NamedTuple):
    """What is known of one watched prefix.

    `block`: its last. `chance` that it is read again within five minutes, and `more`: the reads that are
    then expected after that one, each within five minutes of the one before. `hour`, `more_hourly`: the same
    within the hour. `living`: the TTL of the entry that the provider holds, None where it holds none.
    `pending`: another request is about to have written it.
    """

    block: int
    p_reuse_5m: float
    further_reads_5m: float
    p_reuse_1h: float
    further_reads_1h: float
    cached_ttl: Ttl | None
    in_flight: bool = False


class ReuseModel:
    """Learn from arrivals how likely a prefix of some class is to be read again.

    `hours`: whether entries of an hour may be written; without it the later chance is not learned. `secret`:
    what keys the names under which other workers hear of the `classes`; None where there are none.
    """

    def __init__(self, *, hours: bool, secret: bytes | None = None) -> None:
        self._hours = hours
        self.cohorts = CohortTable(hours=hours, secret=secret)

    def forecast(
        self,
        parsed: ParsedRequest,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[PrefixRecord | None],
        now: float,
        owner: str = "",
    ) -> list[PrefixForecast]:
        """Return the chances of each watched prefix from here; count nothing.

        `owner` is the namespace, or the group of namespaces, whose classes count.
        """
        spoken = [block.role == "assistant" for block in parsed.blocks]
        answered = [*spoken[1:], False]
        depths = [
            None
            if record is None or record.arrivals < _ALONE_FROM or self._hours
            else _from_own_record(index, record, now, answered=answered[index])
            for index, record in zip(watched, records, strict=True)
        ]
        if not all(depths):
            left = [index for index, depth in zip(watched, depths, strict=True) if depth is None]
            request = _ArrivedRequest(parsed, digests, watched, records, now)
            others = iter(_CohortForecast(self.cohorts, request, left, owner, hours=self._hours).forecasts())
            depths = [depth or next(others) for depth in depths]
        return cast("list[PrefixForecast]", depths)

    def observe(
        self,
        parsed: ParsedRequest,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[PrefixRecord | None],
        now: float,
        owner: str = "",
    ) -> None:
        """Count what a request that arrived at `now` shows, by the records from before its arrival."""
        if any(record is None or record.arrivals < _ALONE_FROM for record in records):
            request = _ArrivedRequest(parsed, digests, watched, records, now)
            self.cohorts.observe(
                owner, request.trials_ended(self.cohorts), request.trials_begun(self.cohorts), now
            )


class _CohortKey(NamedTuple):
    """Which class a prefix is in at this arrival: its name, sightings and gap; the levels that narrow it."""

    block: int
    name: CohortName
    sighting: int
    gap_bucket: int
    path: list[CohortName]
    prior: float


class _ArrivedRequest:
    """The prefixes of one request, with the records from before its arrival.

    A record without arrivals says only that another request is about to write the prefix.
    """

    def __init__(
        self,
        parsed: ParsedRequest,
        digests: Sequence[bytes],
        watched: Sequence[int],
        records: Sequence[PrefixRecord | None],
        now: float,
    ) -> None:
        self.parsed, self.now = parsed, now
        self.records = dict(zip(watched, records, strict=True))
        self.known_records = {
            index: record if record is not None and record.arrivals else None
            for index, record in self.records.items()
        }
        self.by_assistant = [block.role == "assistant" for block in parsed.blocks]
        pairs = pairwise([False, *self.by_assistant])
        self._turns = list(accumulate(after and not before for before, after in pairs))
        self._running = parsed.tools_end > 0 or self._turns[-1] > 0
        self._shared_prefixes = _known_shared_prefixes(parsed, digests, self.known_records)
        self.last_block = len(parsed.blocks) - 1

    def seconds_since(self, record: PrefixRecord) -> float:
        """Return the seconds since a prefix arrived before."""
        return max(self.now - record.last_arrival, 0.0)

    def cohort_key(self, index: int) -> _CohortKey:
        """Return the class of a prefix at this arrival."""
        record, whole = self.known_records[index], index == self.last_block
        levels = _cohort_path(self._shared_prefixes, self._turns[index])
        prior = _RUNNING if self._running else _SINGLE if whole else _SINGLE_HEAD
        kind = "end" if whole else "inner"
        if whole and record is not None and record.request_ended_here:
            prior, kind = _REPEAT, "repeat"
        name = (*_position(self.parsed, index), kind)
        if record is None:
            return _CohortKey(index, name, 1, -1, levels, prior)
        return _CohortKey(
            index, name, record.arrivals + 1, _gap_bucket(self.seconds_since(record)), levels, prior
        )

    def trials_ended(self, classes: CohortTable) -> list[TrialEnd]:
        """Return the trials that this arrival ends."""
        ends: list[TrialEnd] = []
        for index, record in self.known_records.items():
            if record is None or record.arrivals >= _ALONE_FROM:
                continue
            # How it stood at its last arrival says which class its trial was counted in.
            gap = _gap_bucket(record.last_gap) if record.arrivals > 1 else -1
            name = (*_position(self.parsed, index), "end" if record.request_ended_here else "inner")
            sighting, levels = (
                min(record.arrivals, _OWN_FROM),
                _cohort_path(self._shared_prefixes, self._turns[index]),
            )
            ends += classes.trials_ended(
                name, sighting, gap, levels, self.seconds_since(record), whole=index == self.last_block
            )
        return ends

    def trials_begun(self, classes: CohortTable) -> list[CohortName]:
        """Return the classes in which a trial begins with this arrival, one for each level."""
        begins: list[CohortName] = []
        for index in self.records:
            place = self.cohort_key(index)
            if place.sighting < _ALONE_FROM:
                sighting = min(place.sighting, _OWN_FROM)
                begins += classes.trials_begun(place.name, sighting, place.gap_bucket, place.path)
        return begins


class _CohortForecast:
    """The chances of those prefixes of a request whose records don't yet speak for themselves alone."""

    def __init__(
        self,
        classes: CohortTable,
        request: _ArrivedRequest,
        indexes: Sequence[int],
        owner: str,
        *,
        hours: bool,
    ) -> None:
        self._classes, self._request, self._indexes, self._hours = classes, request, indexes, hours
        # The returns of this very request count in its own forecasts.
        self._view = classes.view(owner, request.trials_ended(classes), request.now)

    def forecasts(self) -> list[PrefixForecast]:
        """Return what is known of each prefix."""
        request = self._request
        depths: list[PrefixForecast] = []
        new: PrefixForecast | None = None  # the first head that was never seen
        for index in self._indexes:
            record, place = request.known_records[index], request.cohort_key(index)
            if record is None:
                found = self._by_cohort(place)
                if new is not None:
                    # Under tools or a system prompt that don't come again nothing does.
                    found = found._replace(
                        p_reuse_5m=min(found.p_reuse_5m, new.p_reuse_5m),
                        p_reuse_1h=min(found.p_reuse_1h, new.p_reuse_1h),
                    )
                elif index < request.parsed.system_end:
                    new = found
            else:
                found = self._of_seen_prefix(place, record)
            held = request.records[index]
            if held is not None:
                answered = index < request.last_block and request.by_assistant[index + 1]
                living, pending = _entry_state(held, request.now, answered=answered)
                found = found._replace(cached_ttl=living, in_flight=pending)
            depths.append(found)
        return depths

    def _of_seen_prefix(self, place: _CohortKey, record: PrefixRecord) -> PrefixForecast:
        """Return the chances of a prefix with a record: its own as far as it has one."""
        if place.sighting < _OWN_FROM:
            return self._by_cohort(place)
        classes, view, passed = self._classes, self._view, self._request.seconds_since(record)
        chance, alone = _KNOWN, place.sighting >= _ALONE_FROM
        if not alone:
            chance = classes.p_reuse_5m(
                view, place.name, _OWN_FROM, place.gap_bucket, place.path, place.prior, own=True
            )
        late = classes.p_late_reuse(view, place.name, place.sighting, place.path)
        soon = passed <= FIVE_MINUTES
        chance = (record.reuses_5m + soon + _OWN_PRIOR * chance) / (record.trials_5m + 1.0 + _OWN_PRIOR)
        # A record only tells of the times when it came again, so of the later chance its class knows more.
        late = (record.reuses_1h + (not soon and passed <= ONE_HOUR) + _OWN_LATE_PRIOR * late) / (
            record.trials_1h + (not soon) + _OWN_LATE_PRIOR
        )
        hour = chance + (1.0 - chance) * late
        return PrefixForecast(
            place.block, chance, _expected_reads([chance]), hour, _expected_reads([hour]), None
        )

    def _by_cohort(self, place: _CohortKey) -> PrefixForecast:
        index, name, sighting, gap, levels, prior = place
        classes, view = self._classes, self._view
        chance = classes.p_reuse_5m(view, name, sighting, gap, levels, prior, own=True)
        late = classes.p_late_reuse(view, name, sighting, levels)
        more, more_hourly = self._further_reads(name, sighting, levels, prior)
        if name[-1] != "inner" and (share := classes.share_ended_there(view, name, sighting, gap)):
            again = self._further_reads((*name[:-1], "repeat"), sighting, levels, _REPEAT)
            more += share * (again[0] - more)
            more_hourly += share * (again[1] - more_hourly)
        return PrefixForecast(index, chance, more, chance + (1.0 - chance) * late, more_hourly, None)

    def _further_reads(
        self, name: CohortName, sighting: int, levels: Sequence[CohortName], prior: float
    ) -> tuple[float, float]:
        """Return the reads expected after the next arrival, each within five minutes, or within the hour."""
        classes, view = self._classes, self._view
        name = name if name[-1] == "repeat" else (*name[:-1], "inner")
        soon, hourly = [], []
        for later in range(sighting + 1, _OWN_FROM + 1):
            chance = classes.p_reuse_5m(view, name, later, 0, levels, prior, own=False)
            soon.append(chance)
            if self._hours:
                late = classes.p_late_reuse(view, name, later, levels)
                hourly.append(chance + (1.0 - chance) * late)
        return _expected_reads(soon), _expected_reads(hourly) if hourly else 0.0


def with_current_entries(
    depths: Sequence[PrefixForecast], records: Sequence[PrefixRecord | None], now: float
) -> list[PrefixForecast]:
    """Return the same chances with what a later look at the same records says of entries.

    Chances are not judged again: a look at records counts nothing, and only entries change within a wait.
    """
    later = []
    for depth, record in zip(depths, records, strict=True):
        living, pending = depth.cached_ttl, False
        if record is not None and living is None:
            living, pending = _entry_state(record, now, answered=False)
        later.append(depth._replace(cached_ttl=living, in_flight=pending))
    return later


def _from_own_record(index: int, record: PrefixRecord, now: float, *, answered: bool) -> PrefixForecast:
    """Return what is known of a prefix by its record alone, without the later chance."""
    soon = now - record.last_arrival <= FIVE_MINUTES
    chance = (record.reuses_5m + soon + _OWN_PRIOR * _KNOWN) / (record.trials_5m + 1.0 + _OWN_PRIOR)
    more = _reads_in_a_row(chance)
    living, pending = _entry_state(record, now, answered=answered)
    return _made(PrefixForecast, (index, chance, more, chance, more, living, pending))


def _entry_state(record: PrefixRecord, now: float, *, answered: bool) -> tuple[Ttl | None, bool]:
    """Return the TTL of the entry that the provider holds, and whether one is pending.

    `answered`: the model speaks right after it.
    """
    living, pending = record.expires > now, record.in_flight_until > now
    if pending and (living or (answered and record.request_ended_here)):
        # Where a prompt ended here and its answer is in this one, it has begun.
        living, pending = True, False
    if not living:
        return None, pending
    return ("1h" if record.ttl >= ONE_HOUR else "5m"), pending


def _known_shared_prefixes(
    parsed: ParsedRequest, digests: Sequence[bytes], known: Mapping[int, PrefixRecord | None]
) -> list[bytes]:
    """Return the digests of tools and system that a class may be kept for: those seen before.

    Tools or a system prompt that change with every request would fill the table with classes of one.
    """
    tools, system = parsed.tools_end, parsed.system_end
    if tools and known.get(tools - 1) is None:
        return []
    trunk = [digests[tools - 1] if tools else b""]
    if system > tools and known.get(system - 1) is not None:
        trunk.append(digests[system - 1])
    return trunk


def _cohort_path(trunk: Sequence[bytes], turns: int) -> list[CohortName]:
    """Return what narrows a class, level by level: nothing, the stage, tools, system, the very turn."""
    stage = min(turns, 2)
    levels: list[CohortName] = [(), (stage,)]
    if trunk:
        levels.append((stage, trunk[0]))
    if len(trunk) > 1:
        levels += [(stage, *trunk), (stage, *trunk, min(turns, 16))]
    return levels


def _gap_bucket(seconds: float) -> int:
    return 0 if seconds <= FIVE_MINUTES else 1 if seconds <= 1020 else 2 if seconds <= ONE_HOUR else 3


def _position(parsed: ParsedRequest, index: int) -> CohortName:
    """Return where in a request a prefix ends: its section, which of the first blocks there, its role."""
    block = parsed.blocks[index]
    if index < parsed.tools_end:
        return ("tools",)
    if index < parsed.system_end:
        return ("system", min(index - parsed.tools_end, 3), index + 1 == parsed.system_end)
    return ("messages", min(index - parsed.system_end, 3), block.role, block.kind)


def _reads_in_a_row(chance: float) -> float:
    """Return the expected number of reads in a row where each has this chance."""
    sure = min(chance, _SURE)
    return sure / (1.0 - sure)


def _expected_reads(chances: Sequence[float]) -> float:
    """Return the expected number of reads in a row, the last chance holding for all further ones."""
    reads = _reads_in_a_row(chances[-1])
    for chance in reversed(chances[:-1]):
        reads = chance * (1.0 + reads)
    return reads
