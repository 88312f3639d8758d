"""Reuse probability: how likely each tracked prefix is to be read again.

Contains: the cohort of a prefix, the trials that each arrival begins and ends, and the probabilities that
follow. Must not depend on: stores, prices, plans. Statistics are kept in the object; time is an argument.
`forecast` changes nothing; `observe` counts a request once the provider has accepted it.

A cohort is the position and role of a prefix's last block, its number of arrivals, and the last gap. Counts
are kept along a path: for all traffic, for the stage of the conversation, for the tools, for tools with
system, and for the exact turn. Each level is shrunk towards its parent; the fewer its trials, the stronger
the shrinkage.

The source of a forecast depends on the number of arrivals, this one included:

================= ===================================================================================
first to third    the cohort
fourth to seventh the prefix's own history, blended with its cohort
from the eighth   the prefix's own history; the prefix no longer counts in its cohort
================= ===================================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Final, Literal, NamedTuple, TypeAlias, cast

from cachemw.core.hash_types import PrefixHash
from cachemw.core.request.parser import ParsedRequest
from cachemw.core.reuse.cohort_names import bucket_of_gap, cohort_path, known_shared_prefixes, position
from cachemw.core.reuse.cohorts import CohortName, CohortTable, TrialEnd
from cachemw.core.reuse.record import FIVE_MINUTES, ONE_HOUR, PrefixRecord
from cachemw.core.rules.types import Ttl
from cachemw.core.tuning import FORECAST

# The last part of a cohort's name: the request ends with the prefix, goes on after it, or ended there twice
# in a row. Names of cohorts are hashed for the store, so these are plain strings and not members of an enum.
CohortKind: TypeAlias = Literal["end", "inner", "repeat"]
_END: Final = "end"
_INNER: Final = "inner"
_REPEAT: Final = "repeat"
_FIRST_ARRIVAL: Final = -1  # the gap bucket of a prefix without an earlier arrival

_made = tuple.__new__  # does the same as the class's constructor in two thirds of the time


class PrefixForecast(NamedTuple):
    """The forecast of one tracked prefix.

    `block` is its last block. `p_reuse_5m` is the probability of a read within five minutes,
    `further_reads_5m` the number of reads expected after that one, each within five minutes of the one
    before. `p_reuse_1h` and `further_reads_1h` are the same for an hour. `cached_ttl` is the TTL of the entry
    at the provider, None if there is none. `in_flight` is True if another request is about to write it.
    """

    block: int
    p_reuse_5m: float
    further_reads_5m: float
    p_reuse_1h: float
    further_reads_1h: float
    cached_ttl: Ttl | None
    in_flight: bool = False


@dataclass(frozen=True, slots=True, repr=False)
class ArrivedRequest:
    """A request that arrived at `now`, with the records of its tracked blocks from before its arrival."""

    parsed: ParsedRequest
    prefix_hashes: Sequence[PrefixHash]
    tracked_blocks: Sequence[int]
    records: Sequence[PrefixRecord | None]
    now: float


class ReuseModel:
    """Learn from arrivals how likely the prefixes of each cohort are to be read again.

    Args:
        hours: True if 1h entries may be written. Late reuse is learned only then.
        secret: keys the names under which workers exchange cohort counts; None for a worker on its own.
    """

    def __init__(self, *, hours: bool, secret: bytes | None = None) -> None:
        self._hours = hours
        self.cohorts = CohortTable(hours=hours, secret=secret)

    def forecast(self, request: ArrivedRequest, owner: str = "") -> list[PrefixForecast]:
        """Return the forecast of each tracked prefix; count nothing.

        `owner` is the namespace, or the group of namespaces, whose cohorts count.
        """
        tracked, records, now = request.tracked_blocks, request.records, request.now
        by_assistant = [block.role == "assistant" for block in request.parsed.blocks]
        answered = [*by_assistant[1:], False]
        own_only, hours = FORECAST.own_only_from_arrival, self._hours
        forecasts = [
            None
            if record is None or record.arrivals < own_only or hours
            else _from_own_record(index, record, now, answered=answered[index])
            for index, record in zip(tracked, records, strict=True)
        ]
        if not all(forecasts):
            left = [index for index, made in zip(tracked, forecasts, strict=True) if made is None]
            trials = _Trials(request, by_assistant)
            made = iter(_CohortForecast(self.cohorts, trials, left, owner, hours=hours).forecasts())
            forecasts = [forecast or next(made) for forecast in forecasts]
        return cast("list[PrefixForecast]", forecasts)

    def observe(self, request: ArrivedRequest, owner: str = "") -> None:
        """Count an accepted request in the cohorts of its owner."""
        if any(
            record is None or record.arrivals < FORECAST.own_only_from_arrival for record in request.records
        ):
            trials = _Trials(request, [block.role == "assistant" for block in request.parsed.blocks])
            self.cohorts.observe(owner, trials.ended(self.cohorts), trials.begun(self.cohorts), request.now)


# -- cohorts ----------------------------------------------------------------------------------


class _CohortKey(NamedTuple):
    """The cohort of a prefix at this arrival: name, arrivals, gap, path and prior."""

    block: int
    name: CohortName
    sighting: int
    gap_bucket: int
    path: list[CohortName]
    prior: float


class _Trials:
    """The trials of one request: an arrival of a prefix ends its previous trial and begins a new one.

    A record without arrivals only says that another request is about to write the prefix.
    """

    def __init__(self, request: ArrivedRequest, by_assistant: Sequence[bool]) -> None:
        self.parsed, self.now, self.by_assistant = request.parsed, request.now, by_assistant
        self.records = dict(zip(request.tracked_blocks, request.records, strict=True))
        self.known_records = {
            index: record if record is not None and record.arrivals else None
            for index, record in self.records.items()
        }
        pairs = pairwise([False, *by_assistant])
        self._turns = list(accumulate(after and not before for before, after in pairs))
        self._running = self.parsed.tools_end > 0 or self._turns[-1] > 0
        self._shared = known_shared_prefixes(self.parsed, request.prefix_hashes, self.known_records)
        self._paths: dict[int, list[CohortName]] = {}
        self.last_block = len(self.parsed.blocks) - 1

    def seconds_since(self, record: PrefixRecord) -> float:
        """Return the seconds since the previous arrival of a prefix."""
        return max(self.now - record.last_arrival, 0.0)

    def _path(self, index: int) -> list[CohortName]:
        turns = self._turns[index]
        path = self._paths.get(turns)
        if path is None:
            path = self._paths[turns] = cohort_path(self._shared, turns)
        return path

    def cohort_key(self, index: int) -> _CohortKey:
        """Return the cohort of a prefix at this arrival."""
        record, ends_here = self.known_records[index], index == self.last_block
        kind: CohortKind = _END if ends_here else _INNER
        if self._running:
            prior = FORECAST.prior_running
        else:
            prior = FORECAST.prior_single if ends_here else FORECAST.prior_single_shared
        if ends_here and record is not None and record.request_ended_here:
            prior, kind = FORECAST.prior_repeat, _REPEAT
        name, path = (*position(self.parsed, index), kind), self._path(index)
        if record is None:
            return _CohortKey(index, name, 1, _FIRST_ARRIVAL, path, prior)
        gap_bucket = bucket_of_gap(self.seconds_since(record))
        return _CohortKey(index, name, record.arrivals + 1, gap_bucket, path, prior)

    def ended(self, cohorts: CohortTable) -> list[TrialEnd]:
        """Return the trials that this arrival ends, each in the cohort in which it began."""
        ends: list[TrialEnd] = []
        for index, record in self.known_records.items():
            if record is None or record.arrivals >= FORECAST.own_only_from_arrival:
                continue
            gap_bucket = bucket_of_gap(record.last_gap) if record.arrivals > 1 else _FIRST_ARRIVAL
            kind: CohortKind = _END if record.request_ended_here else _INNER
            ends += cohorts.trials_ended(
                (*position(self.parsed, index), kind),
                min(record.arrivals, FORECAST.blend_from_arrival),
                gap_bucket,
                self._path(index),
                self.seconds_since(record),
                whole=index == self.last_block,
            )
        return ends

    def begun(self, cohorts: CohortTable) -> list[CohortName]:
        """Return the cohorts in which a trial begins with this arrival, one for each level."""
        begins: list[CohortName] = []
        for index in self.records:
            key = self.cohort_key(index)
            if key.sighting < FORECAST.own_only_from_arrival:
                sighting = min(key.sighting, FORECAST.blend_from_arrival)
                begins += cohorts.trials_begun(key.name, sighting, key.gap_bucket, key.path)
        return begins


class _CohortForecast:
    """The forecasts of those prefixes of a request whose own records do not suffice."""

    def __init__(
        self,
        cohorts: CohortTable,
        trials: _Trials,
        indexes: Sequence[int],
        owner: str,
        *,
        hours: bool,
    ) -> None:
        self._cohorts, self._trials, self._indexes, self._hours = cohorts, trials, indexes, hours
        # The trials that this request ends count in its own forecasts.
        self._view = cohorts.view(owner, trials.ended(cohorts), trials.now)

    def forecasts(self) -> list[PrefixForecast]:
        """Return the forecast of each prefix."""
        trials = self._trials
        forecasts: list[PrefixForecast] = []
        new: PrefixForecast | None = None  # the first shared prefix without an earlier arrival
        for index in self._indexes:
            record, key = trials.known_records[index], trials.cohort_key(index)
            if record is None:
                made = self._by_cohort(key)
                if new is not None:
                    # A prefix comes again at most as often as the tools or system prompt that it begins with.
                    made = made._replace(
                        p_reuse_5m=min(made.p_reuse_5m, new.p_reuse_5m),
                        p_reuse_1h=min(made.p_reuse_1h, new.p_reuse_1h),
                    )
                elif index < trials.parsed.system_end:
                    new = made
            else:
                made = self._by_history(key, record)
            stored = trials.records[index]
            if stored is not None:
                answered = index < trials.last_block and trials.by_assistant[index + 1]
                cached_ttl, in_flight = _entry_state(stored, trials.now, answered=answered)
                made = made._replace(cached_ttl=cached_ttl, in_flight=in_flight)
            forecasts.append(made)
        return forecasts

    def _by_history(self, key: _CohortKey, record: PrefixRecord) -> PrefixForecast:
        """Return the forecast of a prefix with a record: by its own history as far as it has one."""
        if key.sighting < FORECAST.blend_from_arrival:
            return self._by_cohort(key)
        cohorts, view, passed = self._cohorts, self._view, self._trials.seconds_since(record)
        p_reuse = FORECAST.own_prior
        if key.sighting < FORECAST.own_only_from_arrival:
            p_reuse = cohorts.p_reuse_5m(
                view, key.name, FORECAST.blend_from_arrival, key.gap_bucket, key.path, key.prior, own=True
            )
        p_late = cohorts.p_late_reuse(view, key.name, key.sighting, key.path)
        soon, weight, late_weight = (
            passed <= FIVE_MINUTES,
            FORECAST.own_prior_weight,
            FORECAST.own_late_prior_weight,
        )
        p_reuse = (record.reuses_5m + soon + weight * p_reuse) / (record.trials_5m + 1.0 + weight)
        # A record holds only the returns of a prefix, so its cohort knows more about late reuse.
        p_late = (record.reuses_1h + (not soon and passed <= ONE_HOUR) + late_weight * p_late) / (
            record.trials_1h + (not soon) + late_weight
        )
        within_hour = p_reuse + (1.0 - p_reuse) * p_late
        return PrefixForecast(
            key.block, p_reuse, _expected_reads([p_reuse]), within_hour, _expected_reads([within_hour]), None
        )

    def _by_cohort(self, key: _CohortKey) -> PrefixForecast:
        index, name, sighting, gap_bucket, path, prior = key
        cohorts, view = self._cohorts, self._view
        p_reuse = cohorts.p_reuse_5m(view, name, sighting, gap_bucket, path, prior, own=True)
        p_late = cohorts.p_late_reuse(view, name, sighting, path)
        further, further_1h = self._further_reads(name, sighting, path, prior)
        if name[-1] != _INNER and (share := cohorts.share_ended_there(view, name, sighting, gap_bucket)):
            again = self._further_reads((*name[:-1], _REPEAT), sighting, path, FORECAST.prior_repeat)
            further += share * (again[0] - further)
            further_1h += share * (again[1] - further_1h)
        return PrefixForecast(index, p_reuse, further, p_reuse + (1.0 - p_reuse) * p_late, further_1h, None)

    def _further_reads(
        self, name: CohortName, sighting: int, path: Sequence[CohortName], prior: float
    ) -> tuple[float, float]:
        """Return the reads expected after the next arrival, each within five minutes, or within the hour."""
        cohorts, view = self._cohorts, self._view
        name = name if name[-1] == _REPEAT else (*name[:-1], _INNER)
        soon, hourly = [], []
        for later in range(sighting + 1, FORECAST.blend_from_arrival + 1):
            p_reuse = cohorts.p_reuse_5m(view, name, later, 0, path, prior, own=False)
            soon.append(p_reuse)
            if self._hours:
                p_late = cohorts.p_late_reuse(view, name, later, path)
                hourly.append(p_reuse + (1.0 - p_reuse) * p_late)
        return _expected_reads(soon), _expected_reads(hourly) if hourly else 0.0


# -- entries ----------------------------------------------------------------------------------


def with_current_entries(
    forecasts: Sequence[PrefixForecast], records: Sequence[PrefixRecord | None], now: float
) -> list[PrefixForecast]:
    """Return the same probabilities with the entries of a later look at the same records.

    A look at records counts no arrival, and only entries change during a wait.
    """
    later = []
    for forecast, record in zip(forecasts, records, strict=True):
        cached_ttl, in_flight = forecast.cached_ttl, False
        if record is not None and cached_ttl is None:
            cached_ttl, in_flight = _entry_state(record, now, answered=False)
        later.append(forecast._replace(cached_ttl=cached_ttl, in_flight=in_flight))
    return later


def _from_own_record(index: int, record: PrefixRecord, now: float, *, answered: bool) -> PrefixForecast:
    """Return the forecast of a prefix by its record alone, without late reuse."""
    soon, weight = now - record.last_arrival <= FIVE_MINUTES, FORECAST.own_prior_weight
    p_reuse = (record.reuses_5m + soon + weight * FORECAST.own_prior) / (record.trials_5m + 1.0 + weight)
    further = _reads_in_a_row(p_reuse)
    cached_ttl, in_flight = _entry_state(record, now, answered=answered)
    return _made(PrefixForecast, (index, p_reuse, further, p_reuse, further, cached_ttl, in_flight))


def _entry_state(record: PrefixRecord, now: float, *, answered: bool) -> tuple[Ttl | None, bool]:
    """Return the TTL of the entry at the provider, and True if one is in flight.

    `answered` is True if an assistant's message follows the prefix. If a request ended there, that message is
    its answer, so the entry in flight has been written.
    """
    cached, in_flight = record.expires > now, record.in_flight_until > now
    if in_flight and (cached or (answered and record.request_ended_here)):
        cached, in_flight = True, False
    if not cached:
        return None, in_flight
    return ("1h" if record.ttl >= ONE_HOUR else "5m"), in_flight


# -- names and numbers ------------------------------------------------------------------------


def _reads_in_a_row(p_reuse: float) -> float:
    """Return the expected number of reads in a row if each has this probability."""
    bounded = min(p_reuse, FORECAST.max_certainty)
    return bounded / (1.0 - bounded)


def _expected_reads(probabilities: Sequence[float]) -> float:
    """Return the expected number of reads in a row; the last probability holds for all further reads."""
    reads = _reads_in_a_row(probabilities[-1])
    for p_reuse in reversed(probabilities[:-1]):
        reads = p_reuse * (1.0 + reads)
    return reads
