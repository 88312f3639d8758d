"""The near cache: when it answers for the server, and the records that it restores."""

from __future__ import annotations

import pytest

from cachemw.core.hash_types import StoreKey
from cachemw.core.reuse.record import (
    PrefixRecord,
    in_flight_record,
    new_record,
    record_arrival,
    record_arrivals,
)
from cachemw.stores.protocol import CacheEntry
from cachemw.stores.redis import near_cache as module
from cachemw.stores.redis.hot_prefixes import FRESH, HotUpdate
from cachemw.stores.redis.near_cache import NearCache

NAMES = [b"head 1", b"head 2", b"message 1", b"message 2"]
SHARED = NAMES[:2]


def hot_record(seen: int = 9) -> PrefixRecord:
    """Return the record of a prefix that arrives often."""
    return record_arrivals(None, seen, 0.0)


def reply(
    near: NearCache, names: list[bytes], heads: int, records: list[PrefixRecord | None], now: float
) -> None:
    """Pass on a reply to a call that began with the present records."""
    near.store_reply(names, heads, records, now, near.snapshot_known(names))


def drained(near: NearCache) -> list[HotUpdate]:
    """Return the news that a flush would publish."""
    updates: list[HotUpdate] = []
    near.drain_hot_updates(updates)
    return updates


def to_restore(near: NearCache) -> dict[StoreKey, PrefixRecord]:
    """Return the records that a flush would restore."""
    records: dict[StoreKey, PrefixRecord] = {}
    near.records_to_restore(records)
    return records


def hot(near: NearCache, names: list[bytes], now: float) -> list[PrefixRecord | None] | None:
    """Look shared prefixes up and count their arrival, as a request with an immediate response does."""
    found = near.answer_locally(names, now)
    if found is not None:
        assert near.count(names, now) == found
    return found


def warm(now: float = 10.0, seen: int = 9, **fields: float) -> NearCache:
    """Return a near cache after one reply of the server."""
    near = NearCache()
    records: list[PrefixRecord | None] = [hot_record(seen)._replace(**fields)] * 2
    reply(near, NAMES, 2, [*records, None, None], now)
    return near


def test_hot_prefix_is_counted_when_the_response_begins() -> None:
    """A lookup counts nothing; an arrival is counted even if it began before the server's last reply."""
    near = warm()
    assert near.answer_locally(SHARED, 10.01) == near.answer_locally(SHARED, 10.02)
    assert drained(near) == []
    assert near.count(SHARED, 9.5) is not None
    assert near.count(SHARED, 10.0 + 59.0) is not None
    assert near.count(SHARED, 10.0 + 61.0) is None
    assert [(held.arrivals, held.last) for held in drained(near)] == [(2, 69.0)] * 2


def test_lookup_reply_without_a_lost_record_is_completed() -> None:
    """The server's records count, except those that it lost or has not received yet."""
    near = warm(expires=400.0, ttl=300)
    records: list[PrefixRecord | None] = [None, hot_record(30), None, None]
    found = near.lookup_reply([*NAMES[:3], b"new"], 2, records, 12.0)
    assert [record and record.arrivals for record in found] == [10, 30, 1, None]
    assert to_restore(near) == {}
    being_written = in_flight_record(70.0)
    (first_seen, *_), (unknown,) = (
        near.lookup_reply([name], 0, [being_written], 12.0) for name in (b"head 1", b"new")
    )
    assert first_seen is not None
    assert (first_seen.arrivals, first_seen.in_flight_until) == (10, 70.0)
    assert unknown == being_written


def test_many_arrivals_at_once_equal_single_ones() -> None:
    """The closed form agrees with the single steps."""
    for before in (
        None,
        new_record(1, 5.0),
        hot_record()._replace(last_arrival=9.0, reuses_5m=3.5, trials_5m=7.0),
    ):
        for count in (1, 2, 7, 500):
            record = before
            for _ in range(count):
                record = new_record(0, 400.0) if record is None else record_arrival(record, 0, 400.0)
            assert record is not None
            found = record_arrivals(before, count, 400.0)
            assert tuple(found) == pytest.approx(tuple(record), rel=1e-9)


def test_hot_prefixes_are_answered_for_a_tenth_of_a_second() -> None:
    """Each answer counts its arrival; afterwards the server is asked again."""
    near = warm()
    later = record_arrival(hot_record(), 0, 10.0)
    for number in range(5):
        assert hot(near, SHARED, 10.0 + number / 100) == [later] * 2
        later = record_arrival(later, 0, 10.0 + number / 100)
    assert hot(near, SHARED, 10.0 + 1.01 * FRESH) is None
    assert hot(near, SHARED, 9.9) is None
    assert [(held.name, held.arrivals, held.last) for held in drained(near)] == [
        (b"head 1", 5, 10.04), (b"head 2", 5, 10.04),
    ]  # fmt: skip
    assert drained(near) == []


@pytest.mark.parametrize(
    "near", [NearCache(), warm(seen=2), warm(in_flight_until=60.0)], ids=["unknown", "young", "in flight"]
)
def test_prefixes_that_are_not_hot_are_asked_for(near: NearCache) -> None:
    """The server answers for a record that another worker may be changing."""
    assert hot(near, SHARED, 10.01) is None
    assert drained(near) == []


def test_one_cold_prefix_sends_all_to_the_server() -> None:
    """Shared prefixes are asked for together, and none of them is counted before."""
    near = warm()
    assert hot(near, [*SHARED, b"another"], 10.01) is None
    assert drained(near) == []


def test_published_arrivals_return_with_those_of_other_workers() -> None:
    """The server's records from before are taken over, and later local arrivals are added."""
    near = warm()
    for _ in range(3):
        hot(near, SHARED, 10.02)
    held = drained(near)
    hot(near, SHARED, 10.03)
    theirs = record_arrivals(hot_record(), 40, 10.0)
    near.published(held, [theirs] * 2)
    found = hot(near, SHARED, 10.05)
    assert found is not None
    assert [record and record.arrivals for record in found] == [9 + 40 + 3 + 1] * 2


def test_overtaken_reply_changes_no_record() -> None:
    """The reply with more arrivals is the later one."""
    near = warm(seen=50)
    reply(near, NAMES, 2, [hot_record(20), hot_record(20), None, None], 10.01)
    found = hot(near, SHARED, 10.02)
    assert found is not None
    assert [record and record.arrivals for record in found] == [51, 51]


def shared_entry(expires: float, ttl: int = 300, pending: float = 0.0) -> CacheEntry:
    """Return an entry of a shared prefix."""
    return CacheEntry(b"k", True, expires, ttl, pending)


@pytest.mark.parametrize(
    ("known", "entry", "urgent"),
    [
        ({"expires": 200.0, "ttl": 300}, shared_entry(310.0), False),
        ({"expires": 200.0, "ttl": 300}, shared_entry(310.0)._replace(is_shared=False), True),
        ({"expires": 5.0, "ttl": 300}, shared_entry(310.0), True),
        ({}, shared_entry(310.0), True),
        ({"expires": 200.0, "ttl": 300}, shared_entry(0.0), True),
        ({"expires": 200.0, "ttl": 300}, shared_entry(-1.0, pending=60.0), True),
        ({"expires": 200.0, "ttl": 300, "in_flight_until": 60.0}, shared_entry(310.0), True),
    ],
    ids=["refresh", "not shared", "was expired", "new", "gone", "in flight", "was being written"],
)
def test_only_the_refresh_of_a_cached_entry_can_wait(
    known: dict[str, float], entry: CacheEntry, urgent: bool
) -> None:
    """All other entries are published at once; both kinds are known locally."""
    near = warm(**known)
    assert near.record_write([b"head 1"], [entry]) == [0] * urgent
    assert [held.entry for held in drained(near)] == [entry] * (not urgent)
    (record,) = near.peek([b"head 1"], 11.0)
    assert record is not None
    assert record.in_flight_until == entry.in_flight_until
    assert record.expires == (entry.expires if entry.expires in (0.0, 310.0) else known.get("expires", 0.0))


def test_waiting_refreshes_publish_the_later_expiry() -> None:
    """An entry of an hour and one of five minutes may be refreshed within a tenth of a second."""
    near = warm(expires=400.0, ttl=300)
    assert near.record_write(SHARED[:1], [shared_entry(3700.0, 3600)]) == []
    assert near.record_write(SHARED[:1], [shared_entry(401.0, 300)]) == []
    assert [held.entry and held.entry.expires for held in drained(near)] == [3700.0]


def test_waiting_refresh_of_a_gone_entry_is_dropped() -> None:
    """A refresh that was held back is void after a later report that the entry is gone."""
    near = warm(expires=200.0, ttl=300)
    assert near.record_write([b"head 1"], [shared_entry(310.0)]) == []
    assert near.record_write([b"head 1"], [shared_entry(0.0)]) == [0]
    assert drained(near) == []


def test_worker_without_a_server_continues_from_the_last_records() -> None:
    """Arrivals, entries and claims are kept locally, and scheduled for a restore."""
    near = warm()
    hot(near, SHARED, 10.01)
    found = near.observe(NAMES, 11.0)
    assert [record and record.arrivals for record in found] == [11, 11, 1, 1]
    assert [record and record.request_ended_here for record in found] == [0, 0, 0, 1]
    assert hot(near, SHARED, 11.01) is None
    near.record_write([NAMES[2]], [CacheEntry(b"m", False, 311.0, 300)])
    assert not near.claim([NAMES[2]], [CacheEntry(b"m", False, -1.0, 300, 71.0)], 11.0)
    assert near.claim([NAMES[3]], [CacheEntry(b"m", False, -1.0, 300, 71.0)], 11.0)
    owed = to_restore(near)
    assert sorted(owed) == sorted(NAMES)
    assert [(owed[name].arrivals, owed[name].expires, owed[name].in_flight_until) for name in NAMES] == [
        (12, 0.0, 0.0), (12, 0.0, 0.0), (2, 311.0, 0.0), (2, 0.0, 71.0),
    ]  # fmt: skip
    assert to_restore(near) == {}
    near.schedule_restore([NAMES[1], b"unknown"])
    assert list(to_restore(near)) == [NAMES[1]]


def test_record_that_the_server_lost_is_restored() -> None:
    """A known record replaces the lost one and is restored; an unknown prefix is new."""
    near = warm()
    records: list[PrefixRecord | None] = [None, hot_record(30), None, None]
    reply(near, [*NAMES[:3], b"new"], 2, records, 12.0)
    assert [record and record.arrivals for record in records] == [10, 30, 1, None]
    assert sorted(to_restore(near)) == [b"head 1", b"message 1"]
    forgotten: list[PrefixRecord | None] = [None]
    reply(near, [b"head 1"], 1, forgotten, 12.0 + 7201)
    assert forgotten == [None]


def test_late_reply_to_a_first_arrival_restores_nothing() -> None:
    """No worker knew the prefix at the time of the call, so no record was lost and it is counted already."""
    near = NearCache()
    known = near.snapshot_known(NAMES)
    assert known == [False] * 4
    reply(near, NAMES, 2, [hot_record(5), hot_record(5), new_record(0, 10.0), new_record(1, 10.0)], 10.01)
    records: list[PrefixRecord | None] = [None] * 4
    near.store_reply(NAMES, 2, records, 10.02, known)
    assert records == [None] * 4
    assert to_restore(near) == {}
    assert [record and record.arrivals for record in near.peek(NAMES, 10.03)] == [6, 6, 2, 2]
    found = hot(near, SHARED, 10.03)
    assert found is not None
    assert [record and record.arrivals for record in found] == [6, 6]


def test_scheduled_restore_outlives_a_younger_server_record() -> None:
    """Until the restore, more arrivals and a later expiry count; a younger record changes nothing."""
    near = warm(expires=400.0, ttl=300)
    reply(near, [b"head 1"], 1, [None], 12.0)
    for theirs in (
        new_record(0, 12.0),
        new_record(0, 12.0)._replace(expires=900.0, ttl=3600, in_flight_until=80.0),
    ):
        records: list[PrefixRecord | None] = [theirs]
        reply(near, [b"head 1"], 1, records, 13.0)
        (record,) = records
        assert record is not None
        assert record.arrivals > 9
        assert (record.expires, record.in_flight_until) == (
            max(400.0, theirs.expires),
            theirs.in_flight_until,
        )
    assert to_restore(near)[b"head 1"].expires == 900.0
    near.schedule_restore([b"head 1"])
    more: list[PrefixRecord | None] = [hot_record(99)]
    reply(near, [b"head 1"], 1, more, 14.0)
    assert more == [hot_record(99)._replace(expires=900.0, ttl=3600)]


def test_reply_from_before_a_restore_loses_nothing() -> None:
    """A reply may arrive late; after the next flush the server's record counts."""
    near = warm(expires=400.0, ttl=300)
    reply(near, [b"head 1"], 1, [None], 12.0)
    assert list(to_restore(near)) == [b"head 1"]
    records: list[PrefixRecord | None] = [new_record(0, 12.0)]
    reply(near, [b"head 1"], 1, records, 12.1)
    assert [record and (record.arrivals > 9, record.expires) for record in records] == [(True, 400.0)]
    assert to_restore(near) == {}
    reply(near, [b"head 1"], 1, [new_record(0, 12.0)], 12.1)
    near.restored([b"head 1"])
    assert to_restore(near) == {}
    records = [new_record(0, 12.0)]
    reply(near, [b"head 1"], 1, records, 12.2)
    assert records == [new_record(0, 12.0)]


def test_second_flush_keeps_a_restore_under_way() -> None:
    """A report and the background may flush at once. If a restore fails it is scheduled again."""
    near = warm(expires=400.0, ttl=300)
    reply(near, [b"head 1"], 1, [None], 12.0)
    assert list(to_restore(near)) == [b"head 1"]
    assert to_restore(near) == {}
    reply(near, [b"head 1"], 1, [new_record(0, 12.0)], 12.1)
    near.schedule_restore([b"head 1"])
    near.restored([b"head 1"])  # the late end of another flush
    assert to_restore(near)[b"head 1"].expires == 400.0


def test_unpublished_arrivals_of_a_hot_prefix_are_restored() -> None:
    """Only this worker knows them: if publishing fails, the record as it stands is restored."""
    near = warm(seen=9)
    for _ in range(50):
        assert hot(near, SHARED, 10.05) is not None
    drained(near)
    near.schedule_restore(SHARED)
    assert [record.arrivals for record in to_restore(near).values()] == [60, 60]


def test_hot_prefix_that_the_server_lost_is_restored() -> None:
    """The server replies to the counts with no record from before them."""
    near = warm(seen=9, expires=400.0, ttl=300)
    assert hot(near, SHARED, 10.05) is not None
    near.published(drained(near), [None, None])
    assert [(record.arrivals, record.expires) for record in to_restore(near).values()] == [(11, 400.0)] * 2


def test_gone_entry_stays_gone_beside_a_later_server_expiry() -> None:
    """The later expiry counts, unless a provider read nothing from the entry."""
    near = warm(expires=400.0, ttl=300)
    near.record_write([b"head 1"], [shared_entry(0.0)])
    near.schedule_restore([b"head 1"])
    records: list[PrefixRecord | None] = [hot_record(99)._replace(expires=900.0, ttl=3600)]
    reply(near, [b"head 1"], 1, records, 13.0)
    assert records == [hot_record(99)._replace(expires=0.0, ttl=300)]


def test_worker_without_a_server_waits_for_no_write_of_another() -> None:
    """This worker could not learn that the response to the other request has begun."""
    near = NearCache()
    reply(near, [b"m"], 0, [new_record(0, 9.0)._replace(in_flight_until=69.0)], 10.0)
    (record,) = near.observe([b"m"], 11.0)
    assert record is not None
    assert record.in_flight_until == 0.0


def test_near_cache_when_full_drops_idle_prefixes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Idle shared prefixes make room, busy ones stay, and all tables stay bounded."""
    monkeypatch.setattr(module, "_SHARED", 4)
    monkeypatch.setattr(module, "_RECORDS", 8)
    near = NearCache()
    for number in range(20):
        names = [b"%d %d" % (number, index) for index in range(2)]
        reply(near, [*names, b"m"], 2, [hot_record()] * 3, 1.0)
        hot(near, names, 1.0)
        assert len(near._hot) <= 4
    assert [held.name for held in drained(near)] == [b"0 0", b"0 1", b"1 0", b"1 1"]
    reply(near, [b"x", b"m"], 1, [hot_record()] * 2, 1.0)
    assert list(near._hot._prefixes) == [b"x"]
    near.schedule_restore([b"%d" % number for number in range(9)])
    near.schedule_restore([b"one more"])
    assert len(near._queue.scheduled) == 9
    assert HotUpdate(b"x", 1, 1.0, None).arrivals == 1
