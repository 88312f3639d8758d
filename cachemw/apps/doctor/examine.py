"""The doctor: whether a store does what workers ask of it, and what to do where it doesn't.

Lives here: what is looked at, and in which order. Must not know: how findings are shown. All goes over the
store's own link, and whatever a worker asks of a server is asked, on keys that are deleted after: so what is
checked is what is used. No finding shows a password or a secret.
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
# Seconds: what a store takes for a round trip's.
_CLOCK = 1.0


def examine(settings: Settings) -> Iterator[Finding]:
    """Yield what is found of the settings' store, as it is found. Raises `ConfigError` for a wrong URL."""
    kind = target(settings.store).kind
    if kind == "memory":
        words = "none: what is learned stays in this process. Fine for one worker; for several name a Redis"
        yield Finding("ok", "server", words)
        return
    with closing(RedisClient(settings.store)) as link:
        try:
            # Any answer will do: this user may not be allowed to ask.
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
                words = f"about {count:,} in all namespaces, {each} bytes each: {size(count * each)}"
                yield Finding("ok", "prefixes", words)
            yield _secret(link, commands, settings)
            yield _clock(link)
        except FAILURES as error:
            yield Finding("bad", "scripts", advice(error))


def effective(settings: Settings) -> Iterator[str]:
    """Yield each setting as it counts; of the secret whether it is set, of the store no password."""
    for name in type(settings).model_fields:
        value = getattr(settings, name)
        if name == "secret":
            value = "set" if value else "not set"
        yield f"{name} = {masked(value) if name == 'store' else value}"


def verdict(findings: list[Finding]) -> str:
    """Return what it comes to, in a sentence."""
    bad, doubtful = (sum(finding.level == level for finding in findings) for level in ("bad", "warn"))
    if bad:
        return f"Not fit for use: put right what is bad ({bad})."
    return f"Fit for use; see what could be better ({doubtful})." if doubtful else "Fit for use."


def _nodes(link: RedisClient, url: str) -> dict[str, str]:
    """Return the name and URL of each server that takes writes."""
    if not link.clustered:
        return {"": url}
    (slots,) = ask(link, ("CLUSTER", "SLOTS"))
    found = {}
    for _, _, (host, port, *_), *_ in slots:
        told = host.decode(errors="replace") or target(url).hosts[0][0]
        name = f"[{told}]:{port}" if ":" in told else f"{told}:{port}"
        found[name] = _at(url, name)
    return dict(sorted(found.items()))


def _at(url: str, node: str) -> str:
    """Return the URL of one node of a cluster; its name comes from the server and is no pattern."""
    return re.sub(r"\+cluster://([^/?]*@)?[^/?]*", lambda found: f"://{found[1] or ''}{node}", url)


def _exercise(link: RedisClient, commands: Commands, budget: int) -> Generator[Finding, None, int]:
    """Do all that a worker does, and time the part that requests wait for; return a prefix's bytes, or 0."""
    space, now = f"\0doctor {uuid4().hex}", time.time()
    keys = tuple(PrefixHash(uuid4().bytes) for _ in range(_KEYS))
    names = commands.names(Arrival(space, keys[0], keys[-1], _HEADS, keys))
    entries = [CacheEntry(key, index < _HEADS, now + 300, 300, now + 60) for index, key in enumerate(keys)]
    add, meet = (
        commands.add(space, "doctor", {"calls": 7}, 60, "doctor", 1),
        commands.publish_key_fingerprint(space),
    )
    observe = commands.observe(names, None)
    try:
        # A server that knows the scripts would not show that nobody may teach it any.
        _, new = records(ask(link, *map(with_text, observe)))
        claimed = ask(link, *[claim for claim, _ in commands.claims(names, entries, now)])
        ask(link, *commands.write(names, entries))
        known = peeked(ask(link, *commands.peek(names)), float("-inf"))
        back = [record._replace(arrivals=9) for record in known if record is not None]
        ask(link, *commands.restore(dict(zip(names, back, strict=False))), add, add)
        _, last = records(ask(link, *observe))
        added = sums(ask(link, *commands.read(space, ["doctor"])))
        met = commands.fingerprint_matches(space, ask(link, *meet))
        told = [(record.arrivals, record.expires) for record in last if record is not None]
        right = (new, told) == ([None] * _KEYS, [(9, now + 300)] * _KEYS) and set(claimed) == {1}
        if not (right and added == {"calls": 7} and met):
            words = "they run, but what they write is not there. May the user GET and SET, is there room?"
            yield Finding("bad", "scripts", words)
            return 0
        yield Finding("ok", "scripts", "all that a worker does was done, on keys that are deleted now")
        yield _latency(link, observe, budget)
        with suppress(NoPermissionError):
            sizes = ask(link, *[("MEMORY", "USAGE", name) for name in names])
            return round(sum(each or 0 for each in sizes) / _KEYS)
    finally:
        with suppress(*FAILURES):
            link.execute([("DEL", name) for name in (*names, *add[3:5], meet[0][1])], PATIENCE)
    return 0


def _latency(link: RedisClient, script: list[Command], budget: int) -> Finding:
    ping, usual = (_milliseconds(link, commands) for commands in ([("PING",)], script))
    words = f"PING {ping:.2f} ms, {_KEYS} prefixes {usual:.2f} ms (p50); store_timeout_ms is {budget}"
    if usual > budget:
        return Finding("bad", "latency", f"{words}: most requests give up. Raise it, or use a nearer server")
    if usual > budget / 2:
        return Finding("warn", "latency", f"{words}: little is left for a busy hour. Raise it")
    return Finding("ok", "latency", words)


def _milliseconds(link: RedisClient, commands: Sequence[Command]) -> float:
    taken = []
    for _ in range(_TIMES):
        start = time.perf_counter()
        link.execute(commands, PATIENCE)
        taken.append(time.perf_counter() - start)
    return median(taken) * 1000


def _secret(link: RedisClient, commands: Commands, settings: Settings) -> Finding:
    # Only looked at: whoever sets it first says which secret is right.
    _, look, _ = commands.publish_key_fingerprint(settings.namespace)
    (told,) = ask(link, look)
    if told is not None and not commands.fingerprint_matches(settings.namespace, [None, told]):
        words = "other workers of the namespace have another one, and share nothing with this"
        return Finding("bad", "secret", f"{words}. Set `secret` the same for all")
    if settings.secret is None:
        words = "none is set: hashes are guessable. Set `secret`, long and random, the same for all workers"
        return Finding("warn", "secret", words)
    return Finding("ok", "secret", "set, as other workers have it" if told else "set; no worker was here yet")


def _clock(link: RedisClient) -> Finding:
    start = time.time()
    ((seconds, micros),) = ask(link, ("TIME",))
    ahead = int(seconds) + int(micros) / 1e6 - (start + time.time()) / 2
    if abs(ahead) <= _CLOCK:
        return Finding("ok", "clock", "the server's and this worker's agree within a second")
    words = f"the server's is {abs(ahead):.0f} s {'behind' if ahead < 0 else 'ahead'}"
    words += ". Prefixes go by it, the hours of reports by this worker's: set right which is wrong (NTP)"
    return Finding("warn", "clock", words)
