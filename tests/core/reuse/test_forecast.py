"""Timelines of requests, and the reuse probabilities that follow."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest

from cachemw.core.request.parser import Parser
from cachemw.core.request.prefix_hashes import hash_prefixes
from cachemw.core.request.tracked_prefixes import track_prefixes
from cachemw.core.reuse.forecast import ArrivedRequest, PrefixForecast, ReuseModel, with_current_entries
from cachemw.core.reuse.record import PrefixRecord, in_flight_record, new_record, record_arrival
from cachemw.core.rules.types import Model

MODEL = Model("claude-test", 1024, None)
SYSTEM = {"role": "system", "content": "Be kind."}
TOOL = {"type": "function", "function": {"name": "look_up"}}


class Traffic:
    """Requests of one namespace, the records of their prefixes, and the forecasts of the latest request.

    `play` takes a timeline such as "a question arrives, 10 s pass, the question arrives again".
    """

    def __init__(self, *, hours: bool = False) -> None:
        self._model, self._parser = ReuseModel(hours=hours), Parser()
        self._records: dict[bytes, PrefixRecord] = {}
        self._now, self._number = 1_000_000.0, 0
        self._body: dict[str, Any] = {}
        self.forecasts: list[PrefixForecast] = []
        self.arrived: ArrivedRequest

    def play(self, timeline: str) -> Traffic:
        """Let each step of a timeline happen."""
        for step in filter(None, timeline.split(", ")):
            if found := re.fullmatch(r"([\d,]+) s pass", step):
                self._now += float(found[1])
            elif found := re.fullmatch(r"(\d+) times: (.*)", step):
                self.play(", ".join([found[2].replace(" then ", ", ")] * int(found[1])))
            else:
                getattr(self, step.replace(" ", "_"))()
        return self

    # -- steps --------------------------------------------------------------------------------

    def a_question_arrives(self) -> None:
        """Send a new question without tools under the shared system prompt."""
        self._send({"messages": [SYSTEM, self._user()]})

    def a_request_under_a_new_system_prompt_arrives(self) -> None:
        """Send a new question under a system prompt with a number in it."""
        system = {"role": "system", "content": f"It is {self._number} o'clock."}
        self._send({"messages": [system, self._user()]})

    def an_agent_starts(self) -> None:
        """Send the first request of a conversation with tools."""
        self._send({"tools": [TOOL], "messages": [SYSTEM, self._user()]})

    def the_conversation_goes_on(self) -> None:
        """Send the latest request with the answer and one more turn."""
        answer = {"role": "assistant", "content": f"Answer {self._number}."}
        self._send({**self._body, "messages": [*self._body["messages"], answer, self._user()]})

    def the_same_request_arrives(self) -> None:
        """Send the latest request again."""
        self._send(self._body)

    def the_provider_refuses_a_question(self) -> None:
        """Send a new question that the provider does not accept, so it counts nowhere."""
        self._send({"messages": [SYSTEM, self._user()]}, accepted=False)

    def _user(self) -> Mapping[str, str]:
        self._number += 1
        return {"role": "user", "content": f"Question {self._number}?"}

    def _send(self, body: dict[str, Any], *, accepted: bool = True) -> None:
        self._body = body
        parsed = self._parser.parse({"model": "m", **body}, MODEL)
        hashes, tracked = hash_prefixes(parsed, "n"), track_prefixes(parsed)
        records = [self._records.get(hashes[index]) for index in tracked]
        self.arrived = ArrivedRequest(parsed, hashes, tracked, records, self._now)
        self.forecasts = self._model.forecast(self.arrived)
        if not accepted:
            return
        self._model.observe(self.arrived)
        for index, record in zip(tracked, records, strict=True):
            ends = int(index == tracked[-1])
            self._records[hashes[index]] = (
                record_arrival(record, ends, self._now) if record else new_record(ends, self._now)
            )

    # -- outcomes -----------------------------------------------------------------------------

    @property
    def end(self) -> PrefixForecast:
        """Return the forecast of the whole latest request."""
        return self.forecasts[-1]

    @property
    def shared(self) -> PrefixForecast:
        """Return the forecast of the latest request's tools and system prompt."""
        ends_at = self.arrived.parsed.system_end - 1
        return next(forecast for forecast in self.forecasts if forecast.block == ends_at)


@pytest.mark.parametrize(
    ("timeline", "shared", "end"),
    [
        # A single turn stays alone; an agent, or a conversation in progress, is likely to go on.
        ("a question arrives", 0.30, 0.10),
        ("an agent starts", 0.60, 0.60),
        ("a question arrives, 10 s pass, the conversation goes on", 0.60, 0.60),
        ("an agent starts, 10 s pass, the conversation goes on", 0.60, 0.60),
        # A whole request that comes again is a retry, not the start of a series.
        ("a question arrives, 10 s pass, the same request arrives", 0.30, 0.20),
    ],
)
def test_forecast_without_history_is_the_prior(timeline: str, shared: float, end: float) -> None:
    """Before any evidence the kind of request decides."""
    traffic = Traffic().play(timeline)
    assert traffic.shared.p_reuse_5m == pytest.approx(shared)
    assert traffic.end.p_reuse_5m == pytest.approx(end)


@pytest.mark.parametrize(
    ("timeline", "shared", "end"),
    [
        # The first reuses of a shared prefix prove nothing. From the 4th arrival on its own history counts.
        ("3 times: a question arrives then 10 s pass", 0.300, 0.074),
        ("4 times: a question arrives then 10 s pass", 0.598, 0.056),
        # From the 8th on only its own history counts, and it nears certainty.
        ("7 times: a question arrives then 10 s pass", 0.855, 0.028),
        ("21 times: a question arrives then 10 s pass", 0.897, 0.010),
        # System prompts that are new each time teach their cohort soon that they are not shared.
        ("21 times: a request under a new system prompt arrives then 60 s pass", 0.043, 0.014),
        # Conversations that go on teach the same to later turns; those that stop teach the opposite.
        ("an agent starts, 10 times: 10 s pass then the conversation goes on", 0.846, 0.890),
        ("11 times: an agent starts then 60 s pass", 0.846, 0.121),
        # Questions that are each retried: the next new one is expected to be retried too.
        (
            "10 times: a question arrives then 10 s pass then the same request arrives then 10 s pass, "
            "a question arrives",
            0.897,
            0.827,
        ),
        # Reuse after more than five minutes is no reuse of a 5m entry.
        ("an agent starts, 9 times: 400 s pass then the same request arrives", 0.164, 0.164),
    ],
)
def test_forecast_with_history_follows_it(timeline: str, shared: float, end: float) -> None:
    """A prefix's own arrivals and those of its cohort move the probability of reuse within five minutes."""
    traffic = Traffic().play(timeline)
    assert traffic.shared.p_reuse_5m == pytest.approx(shared, abs=0.001)
    assert traffic.end.p_reuse_5m == pytest.approx(end, abs=0.001)


@pytest.mark.parametrize(
    ("timeline", "shared", "end"),
    [
        ("a question arrives", 0.440, 0.280),
        # Ten minutes between turns: lost for five minutes, almost sure within the hour.
        (
            "10 times: an agent starts then 400 s pass then the conversation goes on then 400 s pass, "
            "an agent starts",
            0.938,
            0.986,
        ),
        # Prompts that never return: lost for the hour too.
        ("21 times: a request under a new system prompt arrives then 60 s pass", 0.045, 0.016),
    ],
)
def test_forecast_within_the_hour_learns_late_reuse(timeline: str, shared: float, end: float) -> None:
    """With 1h entries allowed, the share of late returns is learned apart from that of early ones."""
    traffic = Traffic(hours=True).play(timeline)
    assert traffic.shared.p_reuse_1h == pytest.approx(shared, abs=0.001)
    assert traffic.end.p_reuse_1h == pytest.approx(end, abs=0.001)


@pytest.mark.parametrize(
    ("timeline", "further"),
    [
        # p / (1 - p) further reads where each is as likely as the one before.
        ("an agent starts", 1.5),
        ("a question arrives", 0.11),
        # A retried question is read once more, and then seldom.
        (
            "10 times: a question arrives then 10 s pass then the same request arrives then 10 s pass, "
            "a question arrives",
            0.06,
        ),
    ],
)
def test_forecast_of_further_reads_follows_the_series(timeline: str, further: float) -> None:
    """A conversation is read turn by turn; a retry ends a series."""
    assert Traffic().play(timeline).end.further_reads_5m == pytest.approx(further, abs=0.01)


def test_forecast_of_a_refused_request_changes_nothing() -> None:
    """A request that the provider did not accept leaves no trace in any later forecast."""
    refused = Traffic().play("20 times: the provider refuses a question then 10 s pass, a question arrives")
    fresh = Traffic().play("a question arrives")
    assert [f.p_reuse_5m for f in refused.forecasts] == [f.p_reuse_5m for f in fresh.forecasts]


def test_forecast_of_a_prefix_never_exceeds_that_of_a_new_shared_prefix() -> None:
    """A prefix comes again at most as often as the new system prompt that it begins with."""
    traffic = Traffic().play("12 times: a question arrives then 10 s pass then the conversation goes on")
    traffic.play("a request under a new system prompt arrives")
    assert all(f.p_reuse_5m <= traffic.shared.p_reuse_5m for f in traffic.forecasts)


# -- entries ----------------------------------------------------------------------------------


def test_entry_in_flight_is_cached_once_a_later_request_holds_its_answer() -> None:
    """The answer to a prompt follows only after its response started, so its entry has been written."""
    traffic = Traffic().play("a question arrives, 10 s pass, the conversation goes on")
    now, parsed = traffic.arrived.now, traffic.arrived.parsed
    ended = new_record(1, now - 10.0)._replace(in_flight_until=now + 50.0, ttl=300)
    went_on = ended._replace(request_ended_here=0)
    for record, outcome in ((ended, ("5m", False)), (went_on, (None, True))):
        records = [None, record, *[None] * (len(traffic.arrived.tracked_blocks) - 2)]
        request = ArrivedRequest(
            parsed, traffic.arrived.prefix_hashes, traffic.arrived.tracked_blocks, records, now
        )
        found = ReuseModel(hours=False).forecast(request)[1]
        assert (found.cached_ttl, found.in_flight) == outcome


def test_entries_of_a_later_look_replace_those_of_the_forecast() -> None:
    """A request that waited reads the entry that another one wrote meanwhile; its probabilities stay."""
    before = Traffic().play("a question arrives").forecasts
    cached = in_flight_record(0.0)._replace(expires=2e6, ttl=3600)
    pending = in_flight_record(2e6)
    after = with_current_entries(before, [cached, pending], 1_000_000.0)
    assert [(f.cached_ttl, f.in_flight) for f in after] == [("1h", False), (None, True)]
    assert [f.p_reuse_5m for f in after] == [f.p_reuse_5m for f in before]
