"""The doctor: check that a store executes all commands of a worker, and say how to fix it.

Contains: the checks and their order. Must not depend on: how findings are shown. All checks use the store's
own client and execute the commands of a worker, on keys that are deleted afterwards. No finding shows a
password or a secret.
"""

from __future__ import annotations

import re
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, suppress
from statistics import median
from uuid import uuid4

from redis.exceptions import NoPermissionError

from cachemw.apps.doctor.checkup import checkup, size
from cachemw.apps.doctor.findings import FAILURES, PATIENCE, Finding, advice, ask
from cachemw.core.hash_types import PrefixHash
from cachemw.engine.shared import hash_key
from cachemw.settings import Settings
from cachemw.stores.protocol import Arrival, CacheEntry
from cachemw.stores.redis.client.link import RedisClient
from cachemw.stores.redis.commands import Command, Commands, peeked, records, sums, with_text
from cachemw.stores.url import masked, target

_TIMES, _KEYS, _HEADS = 30, 50, 8
_CLOCK = 1.0  # seconds of difference that are attributed to the round trip


def examine(settings: Settings) -> Iterator[Finding]:
    """Check the store of the settings, yield each finding at once. Raises `ConfigError` for a wrong URL."""
    kind = target(settings.store).kind
    if kind == "memory":
        words = "No store server: statistics stay in this process. For several workers, name a Redis."
        yield Finding("ok", "server", words)
        return
    with closing(RedisClient(settings.store)) as link:
        try:
            # Any answer is good enough: the user may lack the permission for PING.
            link.execute([("PING",)], PATIENCE)
            nodes = _nodes(link, settings.store)
        except FAILURES as error:
            yield Finding("bad", "server", advice(error))
            return
        count = 0
        for name, url in nodes.items():
            with closing(RedisClient(url)) as node:
                count += yield from checkup(node, name, kind)
        commands = Commands(hash_key(settings), clustered=link.clustered)
        try:
            each = yield from _exercise(link, commands, settings.store_timeout_ms)
            if count and each:
                words = f"About {count:,} in all namespaces, {each} bytes each: {size(count * each)}."
                yield Finding("ok", "prefixes", words)
            yield _secret(link, commands, settings)
            yield _clock(link)
        except FAILURES as error:
            yield Finding("bad", "scripts", advice(error))


def effective(settings: Settings) -> Iterator[str]:
    """Yield each setting with its effective value, without the secret and without the store's password."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name == "secret":
            value = "set" if value else "not set"
        yield f"{name} = {masked(value) if name == 'store' else value}"


def verdict(findings: list[Finding]) -> str:
    """Return the result of all findings in a sentence."""
    bad, doubtful = (sum(finding.level == level for finding in findings) for level in ("bad", "warn"))
    if bad:
        return f"The store is not fit for use. Fix the findings marked bad ({bad})."
    return (
        f"The store is fit for use. Consider the findings marked warn ({doubtful})."
        if doubtful
        else "The store is fit for use."
    )


def _nodes(link: RedisClient, url: str) -> dict[str, str]:
    """Return the name and URL of each server that accepts writes."""
    if not link.clustered:
        return {"": url}
    (slots,) = ask(link, ("CLUSTER", "SLOTS"))
    found = {}
    for _, _, (host, port, *_), *_ in slots:
        address = host.decode(errors="replace") or target(url).hosts[0][0]
        name = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        found[name] = _at(url, name)
    return dict(sorted(found.items()))


def _at(url: str, node: str) -> str:
    """Return the URL of one node of a cluster. The server chose the name, so it is not used as a pattern."""
    return re.sub(r"\+cluster://([^/?]*@)?[^/?]*", lambda found: f"://{found[1] or ''}{node}", url)


def _exercise(link: RedisClient, commands: Commands, budget: int) -> Generator[Finding, None, int]:
    """Execute all commands of a worker and time those that requests wait for; return bytes a prefix, or 0."""
    space, now = f"\0doctor {uuid4().hex}", time.time()
    keys = tuple(PrefixHash(uuid4().bytes) for _ in range(_KEYS))
    names = commands.names(Arrival(space, keys[0], keys[-1], _HEADS, keys))
    entries = [CacheEntry(key, index < _HEADS, now + 300, 300, now + 60) for index, key in enumerate(keys)]
    add, fingerprint = (
        commands.add(space, "doctor", {"calls": 7}, 60, "doctor", 1),
        commands.publish_key_fingerprint(space),
    )
    observe = commands.observe(names, None)
    try:
        # Scripts go with their text: a server that has them cached would hide a missing permission.
        _, new = records(ask(link, *map(with_text, observe)))
        claimed = ask(link, *[claim for claim, _ in commands.claims(names, entries, now)])
        ask(link, *commands.write(names, entries))
        known = peeked(ask(link, *commands.peek(names)), float("-inf"))
        back = [record._replace(arrivals=9) for record in known if record is not None]
        ask(link, *commands.restore(dict(zip(names, back, strict=False))), add, add)
        _, last = records(ask(link, *observe))
        added = sums(ask(link, *commands.read(space, ["doctor"])))
        matches = commands.fingerprint_matches(space, ask(link, *fingerprint))
        stored = [(record.arrivals, record.expires) for record in last if record is not None]
        right = (new, stored) == ([None] * _KEYS, [(9, now + 300)] * _KEYS) and set(claimed) == {1}
        if not (right and added == {"calls": 7} and matches):
            words = (
                "The scripts run, but their writes are lost. Allow the user GET and SET; check the memory."
            )
            yield Finding("bad", "scripts", words)
            return 0
        yield Finding("ok", "scripts", "All commands of a worker succeeded, on keys that are deleted now.")
        yield _latency(link, observe, budget)
        with suppress(NoPermissionError):
            sizes = ask(link, *[("MEMORY", "USAGE", name) for name in names])
            return round(sum(each or 0 for each in sizes) / _KEYS)
    finally:
        with suppress(*FAILURES):
            link.execute([("DEL", name) for name in (*names, *add[3:5], fingerprint[0][1])], PATIENCE)
    return 0


def _latency(link: RedisClient, script: list[Command], budget: int) -> Finding:
    ping, usual = (_milliseconds(link, commands) for commands in ([("PING",)], script))
    words = f"PING {ping:.2f} ms, {_KEYS} prefixes {usual:.2f} ms (p50); store_timeout_ms is {budget}."
    if usual > budget:
        return Finding("bad", "latency", f"{words} Most requests time out. Raise it, or use a nearer server.")
    if usual > budget / 2:
        return Finding("warn", "latency", f"{words} Requests may time out in a busy hour. Raise it.")
    return Finding("ok", "latency", words)


def _milliseconds(link: RedisClient, commands: Sequence[Command]) -> float:
    taken = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        link.execute(commands, PATIENCE)
        taken.append(time.perf_counter() - start)
    return median(taken) * 1000


def _secret(link: RedisClient, commands: Commands, settings: Settings) -> Finding:
    # Only read it: the first worker that writes its fingerprint decides which secret is right.
    _, look, _ = commands.publish_key_fingerprint(settings.namespace)
    (known,) = ask(link, look)
    if known is not None and not commands.fingerprint_matches(settings.namespace, [None, known]):
        words = "Other workers of the namespace have another secret, so this one shares nothing with them."
        return Finding("bad", "secret", f"{words} Set the same `secret` for all.")
    if settings.secret is None:
        words = "No secret is set, so hashes are guessable. Set one long random `secret` for all workers."
        return Finding("warn", "secret", words)
    return Finding(
        "ok",
        "secret",
        "Set, and the same as other workers have." if known else "Set. No worker has used the store yet.",
    )


def _clock(link: RedisClient) -> Finding:
    start = time.time()
    ((seconds, micros),) = ask(link, ("TIME",))
    ahead = int(seconds) + int(micros) / 1e6 - (start + time.time()) / 2
    if abs(ahead) <= _CLOCK:
        return Finding("ok", "clock", "The clocks of the server and of this worker agree within a second.")
    words = f"The server's clock is {abs(ahead):.0f} s {'behind' if ahead < 0 else 'ahead'}."
    words += " Prefixes use it, the hours of reports this worker's. Correct the wrong one (NTP)."
    return Finding("warn", "clock", words)
