"""What one server is, how much room it has, and how many prefixes it holds.

Lives here: what INFO tells, and what is good. Must not know: what workers ask of it.
"""

from __future__ import annotations

from collections.abc import Generator

from redis.exceptions import NoPermissionError

from cachemw.apps.doctor.findings import FAILURES, Finding, advice, ask
from cachemw.stores.redis.client.link import RedisClient

_SCANS, _SCANNED = 10, 1_000


def checkup(link: RedisClient, name: str, kind: str) -> Generator[Finding, None, int]:
    """Yield what one server is; return how many prefixes it holds, about.

    `name` tells it from the others of a cluster; `kind` is that of the store's URL.
    """
    front = f"{name}: " if name else ""
    try:
        told = ask(link, ("INFO",))[0].decode(errors="replace")
        facts = dict(line.split(":", 1) for line in told.splitlines() if ":" in line)
        for found in (_server(facts, kind), _room(facts)):
            yield Finding(found.level, found.about, front + found.words)
        return _prefixes(link)
    except NoPermissionError as error:
        yield Finding(
            "warn", "server", f"{front}not all can be looked at, which takes INFO, DBSIZE, SCAN ({error})"
        )
    except FAILURES as error:
        yield Finding("bad", "server", front + advice(error))
    return 0


def size(amount: float) -> str:
    """Return bytes in a unit to read."""
    unit = "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:,.1f} {unit}"


def _server(facts: dict[str, str], kind: str) -> Finding:
    version = facts.get("valkey_version") or facts.get("redis_version", "of no version")
    mode = facts.get("server_mode") or facts.get("redis_mode", "standalone")
    words = f"{facts.get('server_name', 'redis').capitalize()} {version}, {mode}"
    if mode == "sentinel":
        return Finding("bad", "server", f"{words}. Write redis+sentinel://host:port/service")
    if mode == "cluster" and kind != "cluster":
        return Finding("bad", "server", f"{words}. Write redis+cluster:// in the place of redis://")
    if facts.get("role") == "slave":
        return Finding(
            "warn", "server", f"{words}, a replica. Name the master: what a replica is told, it tells nobody"
        )
    return Finding("ok", "server", words)


def _room(facts: dict[str, str]) -> Finding:
    used, most = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    policy, evicted = facts.get("maxmemory_policy", "noeviction"), int(facts.get("evicted_keys", 0))
    if not most:
        words = f"{size(used)} used, no limit. Set maxmemory, and maxmemory-policy volatile-lru"
        return Finding("warn", "memory", words)
    words = f"{size(used)} of {size(most)} used, {policy}"
    if policy == "noeviction":
        words += ": once full it refuses all writes, and no worker learns. Set maxmemory-policy volatile-lru"
        return Finding("bad" if used >= most else "warn", "memory", words)
    if policy.endswith("random"):
        words += (
            ": what every request needs is dropped like what none does. Set maxmemory-policy volatile-lru"
        )
        return Finding("warn", "memory", words)
    return Finding("ok", "memory", f"{words}, {evicted:,} keys evicted so far")


def _prefixes(link: RedisClient) -> int:
    """Estimate how many prefixes a server holds, of all namespaces, by looking at some of its keys."""
    (total,), cursor, seen, ours = ask(link, ("DBSIZE",)), b"0", 0, 0
    for _ in range(_SCANS):
        ((cursor, names),) = ask(link, ("SCAN", cursor, "COUNT", _SCANNED))
        seen += len(names)
        ours += sum(name.startswith(b"cachemw:{") and b"}:p:" in name for name in names)
        if cursor == b"0":
            break
    return round(int(total) * ours / seen) if seen else 0
