"""Reports of one process and of all workers on one store."""

from __future__ import annotations

import threading
from decimal import Decimal

import pytest

import cachemw
from cachemw.engine import shared
from tests.engine.calls import MODEL, agent, make_middleware, usage


def test_call_that_began_is_unsettled_until_it_settles_or_fails() -> None:
    """A call counts from the start of its answer, and is unsettled until its end."""
    mw = make_middleware()
    calls = [
        mw.prepare(agent(), labels={"app": "a"}),
        mw.prepare(agent(), namespace="tenant"),
        mw.prepare({"model": MODEL, "messages": []}),
    ]
    mw.prepare(agent())  # counts nowhere, since no answer begins
    assert mw.report().rows == ()
    for call in calls:
        mw.begun(call)
    for _ in range(2):
        mw.clock.now += 3601  # type: ignore[attr-defined]
        report = mw.report()
        assert (report.totals.calls, report.totals.unsettled) == (3, 3)
        assert mw.report("process").totals.unsettled == 3
    assert {row.labels.get("app") for row in report.rows} == {"a", None}
    assert mw.settle(calls[0], usage(uncached=50)).usage is not None
    assert (mw.report().totals.calls, mw.report().totals.unsettled, mw.report().totals.uncached) == (3, 2, 50)
    mw.fail(calls[2])
    assert (mw.report().totals.calls, mw.report().totals.unsettled) == (2, 1)


def test_worker_that_dies_leaves_its_calls_unsettled() -> None:
    """Any worker reports the calls of all, including calls that began at a dead worker."""
    dead, alive = make_middleware(), make_middleware()
    alive._shell.store = dead._shell.store
    dead.settle(dead.prepare(agent()), usage(cache_read=900, uncached=100))
    dead.begun(dead.prepare(agent()))
    del dead
    totals = alive.report().totals
    assert (totals.calls, totals.unsettled, totals.cache_read) == (2, 1, 900)


def test_model_names_beyond_the_limit_count_as_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Model names that occur once make no row each."""
    monkeypatch.setattr(shared, "_MODELS", 3)
    mw = make_middleware(mode="off")
    for number in range(9):
        mw.settle(mw.prepare({"model": f"m{number}", "messages": []}), usage(uncached=1))
    assert sorted(row.model for row in mw.report().rows) == ["m0", "m1", "m2", "other"]


def test_report_has_all_workers_and_namespaces_or_one_process() -> None:
    """The ledger covers all workers and namespaces; a process has its own sums."""
    one, two = make_middleware(), make_middleware()
    two._shell.store = one._shell.store
    for mw, namespace in ((one, None), (two, None), (two, "tenant")):
        mw.settle(mw.prepare(agent(), namespace=namespace), usage(cache_read=900, uncached=100))
    assert one.report().totals.calls == two.report().totals.calls == 3
    assert one.report("process").totals.calls == 1
    assert two.report("process").totals.calls == 2
    totals = one.report().totals
    assert totals.hit_rate == 0.9
    assert totals.paid == 3 * (900 * Decimal("0.3") + 100 * 3) / 10**6
    assert totals.saved == totals.baseline - totals.paid
    one.clock.now += 8 * 24 * 3600  # type: ignore[attr-defined]
    assert one.report().totals.calls == 0


@pytest.mark.parametrize("local", [True, False])
def test_calls_of_many_threads_are_counted_once_each(local: bool) -> None:
    """Threads that prepare and settle at once lose no call and count none twice."""
    mw = make_middleware()
    mw._shell.store.local = local
    calls: list[cachemw.Call] = []

    def work(thread: int) -> None:
        for number in range(40):
            call = mw.prepare(agent(1 + number % 5), labels={"thread": str(thread)})
            calls.append(call)
            mw.begun(call)
            mw.settle(call, usage(cache_read=10, cache_write=20, uncached=30))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    # All threads race to settle the same call once more, and a fresh one.
    fresh = mw.prepare(agent(), labels={"thread": "0"})
    racing = [
        threading.Thread(target=mw.settle, args=(call, usage(uncached=1))) for call in [fresh] * 8 + calls[:8]
    ]
    for thread in racing:
        thread.start()
    for thread in racing:
        thread.join()
    report = mw.report()
    assert (report.totals.calls, report.totals.cache_read, report.totals.uncached) == (241, 2400, 7201)
    assert len(report.rows) == 6
    assert len({call.id for call in calls}) == 240
    assert not [name for name in mw.counts if name.startswith("error")]
    assert report.totals.unsettled == 0
    mw.close()
