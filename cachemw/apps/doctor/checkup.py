"""Check one server: its version and role, its memory, and the number of prefixes that it holds.

Contains: the reading of INFO, and the findings from it. Must not depend on: the commands of workers.
"""

from __future__ import annotations

from collections.abc import Generator

from redis.exceptions import NoPermissionError

from cachemw.apps.doctor.findings import FAILURES, Finding, advice, ask
from cachemw.stores.redis.client.link import RedisClient

_SCANS, _SCANNED = 10, 1_000


def checkup(link: RedisClient, name: str, kind: str) -> Generator[Finding, None, int]:
    """Yield the findings about one server; return an estimate of the prefixes that it holds.

    `name` identifies the server in a cluster; `kind` is the kind of the store's URL.
    """
    front = f"{name}: " if name else ""
    try:
        info = ask(link, ("INFO",))[0].decode(errors="replace")
        facts = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
        for found in (_server(facts, kind), _room(facts)):
            yield Finding(found.level, found.about, front + found.words)
        return _prefixes(link)
    except NoPermissionError as error:
        yield Finding(
            "warn",
            "server",
            f"{front}The checks are incomplete. Allow the user INFO, DBSIZE and SCAN. ({error})",
        )
    except FAILURES as error:
        yield Finding("bad", "server", front + advice(error))
    return 0


def size(amount: float) -> str:
    """Return a number of bytes in a readable unit."""
    unit = "bytes"
    for larger in ("KB", "MB", "GB", "TB"):
        if amount < 1000:
            break
        amount, unit = amount / 1000, larger
    return f"{amount:,.1f} {unit}"


def _server(facts: dict[str, str], kind: str) -> Finding:
    version = facts.get("valkey_version") or facts.get("redis_version", "of unknown version")
    mode = facts.get("server_mode") or facts.get("redis_mode", "standalone")
    words = f"{facts.get('server_name', 'redis').capitalize()} {version}, {mode}"
    if mode == "sentinel":
        return Finding("bad", "server", f"{words}. Write redis+sentinel://host:port/service.")
    if mode == "cluster" and kind != "cluster":
        return Finding("bad", "server", f"{words}. Write redis+cluster:// instead of redis://.")
    if facts.get("role") == "slave":
        return Finding(
            "warn", "server", f"{words}, a replica. Its writes reach no other server. Name the master."
        )
    return Finding("ok", "server", f"{words}.")


def _room(facts: dict[str, str]) -> Finding:
    used, most = int(facts.get("used_memory", 0)), int(facts.get("maxmemory", 0))
    policy, evicted = facts.get("maxmemory_policy", "noeviction"), int(facts.get("evicted_keys", 0))
    if not most:
        words = f"{size(used)} used, no limit. Set maxmemory, and maxmemory-policy volatile-lru."
        return Finding("warn", "memory", words)
    words = f"{size(used)} of {size(most)} used, {policy}"
    if policy == "noeviction":
        words += ". Once full, it refuses all writes. Set maxmemory-policy volatile-lru."
        return Finding("bad" if used >= most else "warn", "memory", words)
    if policy.endswith("random"):
        words += ". It evicts busy keys as often as idle ones. Set maxmemory-policy volatile-lru."
        return Finding("warn", "memory", words)
    return Finding("ok", "memory", f"{words}, {evicted:,} keys evicted so far.")


def _prefixes(link: RedisClient) -> int:
    """Estimate from a sample of its keys how many prefixes of all namespaces a server holds."""
    (total,), cursor, seen, prefixes = ask(link, ("DBSIZE",)), b"0", 0, 0
    for _ in range(_SCANS):
        ((cursor, names),) = ask(link, ("SCAN", cursor, "COUNT", _SCANNED))
        seen += len(names)
        prefixes += sum(name.startswith(b"cachemw:{") and b"}:p:" in name for name in names)
        if cursor == b"0":
            break
    return round(int(total) * prefixes / seen) if seen else 0
