"""Two tenants on one middleware: the traffic of one must not change a byte for the other.

The machine runs tenant B's requests in two worlds. In one of them tenant A, who may be hostile, sends
requests as well. After every step of B its outgoing body, plan, labels and receipt must be equal in both.
`EXAMPLES` sets how many runs are tried.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

import cachemw
from cachemw.core.rules.models import MODELS
from cachemw.simulation.provider import ProviderCache
from cachemw.simulation.usage_forms import databricks_usage

EXAMPLES = int(os.environ.get("EXAMPLES", "40"))
NAME = "claude-sonnet-4-6"
SYSTEMS = [f"Manual {number}: " + "how to descale the espresso machine. " * 350 for number in range(3)]
TOOLS = [
    {"type": "function", "function": {"name": f"tool_{number}", "description": "Look it up. " * 120}}
    for number in range(3)
]
QUESTIONS = [f"Question {number}? " + "More of it. " * 60 for number in range(3)]
JUNK_USAGE = [
    None,
    {},
    {"prompt_tokens": 9, "completion_tokens": 1},
    {"prompt_tokens": 90_000, "completion_tokens": 1, "cache_read_input_tokens": 80_000},
    {"prompt_tokens": 9_000, "completion_tokens": 1, "cache_creation_input_tokens": 0},
]
REFUSALS = [
    "messages.0.content.0.text.cache_control: Extra inputs are not permitted",
    "cache_control is not supported",
    "messages.0.content.0.cache_control.ttl: Input should be '5m'",
]
OPTIONS = [{}, {"ttl": "auto"}, {"split_text": True, "sort_tools": True}, {"mode": "observe"}]


_worlds = itertools.count()


class World:
    """One middleware with one provider for each tenant; worlds on one server share no namespace."""

    def __init__(self, now: Callable[[], float], **fields: Any) -> None:
        self.name = f"world {next(_worlds)}"
        self.mw = cachemw.Middleware(
            provider="databricks",
            clock=now,
            max_labels=5,
            store_timeout_ms=10_000,
            namespace=self.name,
            **fields,
        )
        self.now = now
        self.providers = {tenant: ProviderCache(MODELS[NAME]) for tenant in "ab"}

    def send(self, tenant: str, body: Any, labels: dict[str, str], end: str) -> tuple[Any, ...]:
        """Send a request to its end, and return all that its tenant can see of it."""
        mw, provider = self.mw, self.providers[tenant]
        call = mw.prepare(body, labels, f"{self.name} {tenant}")
        seen = (call.body, call.plan, dict(call.labels))
        if end == "fail":
            mw.fail(call)
            mw.flush()
            return seen
        ticket = provider.begin(call.body, self.now())
        provider.answer_began(ticket, self.now())
        mw.begun(call)
        receipt = mw.settle(call, databricks_usage(ticket, 10) if end == "settle" else None)
        mw.flush()
        return (*seen, receipt)


def request(system: int, turns: list[int], tools: list[int], model: str = NAME) -> dict[str, Any]:
    """Return the body of a conversation with these parts."""
    messages: list[Any] = [{"role": "system", "content": SYSTEMS[system]}]
    for number, turn in enumerate(turns):
        messages.append({"role": "user", "content": QUESTIONS[turn]})
        if number < len(turns) - 1:
            messages.append({"role": "assistant", "content": f"Answer {turn}."})
    body: dict[str, Any] = {"model": model, "messages": messages}
    return {**body, "tools": [TOOLS[number] for number in tools]} if tools else body


SYSTEM = st.integers(0, len(SYSTEMS) - 1)
TURNS = st.lists(st.integers(0, len(QUESTIONS) - 1), min_size=1, max_size=4)
OFFERED = st.sampled_from([[], [0, 1, 2], [2, 1, 0], [1]])
LABELS = st.dictionaries(st.sampled_from(["team", "app"]), st.sampled_from(["red", "blue"]), max_size=2)


def machine(stores: Callable[[], str]) -> type[RuleBasedStateMachine]:
    """Return the machine for stores that a function names, one for each world."""

    class TwoTenants(RuleBasedStateMachine):
        clock = 1_000_000.0

        @initialize(fields=st.sampled_from(OPTIONS))
        def start(self, fields: dict[str, Any]) -> None:
            def now() -> float:
                return self.clock

            self.shared, self.alone = (World(now, store=stores(), secret="s", **fields) for _ in range(2))

        @rule(seconds=st.sampled_from([1.0, 30.0, 200.0, 400.0, 4_000.0]))
        def wait(self, seconds: float) -> None:
            self.clock += seconds

        @rule(
            system=SYSTEM, turns=TURNS, tools=OFFERED, labels=LABELS,
            end=st.sampled_from(["settle", "settle", "settle", "fail", "no usage"]),
        )  # fmt: skip
        def tenant_b_sends(
            self, system: int, turns: list[int], tools: list[int], labels: dict[str, str], end: str
        ) -> None:
            body = request(system, turns, tools)
            found = [world.send("b", body, labels, end) for world in (self.shared, self.alone)]
            assert found[0] == found[1]

        @rule(
            system=SYSTEM, turns=TURNS, tools=OFFERED, count=st.integers(1, 12),
            end=st.sampled_from(["settle", "fail", "no usage"]),
        )  # fmt: skip
        def tenant_a_sends(
            self, system: int, turns: list[int], tools: list[int], count: int, end: str
        ) -> None:
            for _ in range(count):
                self.shared.send("a", request(system, turns, tools), {"team": "red"}, end)

        @rule(count=st.integers(1, 12), end=st.sampled_from(["settle", "fail"]))
        def tenant_a_sends_junk_names(self, count: int, end: str) -> None:
            for number in range(count):
                body = request(0, [0], [], f"{NAME}-junk-{number}")
                call = self.shared.mw.prepare(
                    body, {f"team {number}": "x", "team": f"{number}"}, f"{self.shared.name} a"
                )
                self.shared.mw.fail(call) if end == "fail" else self.shared.mw.settle(
                    call, {"model": "gpt-5.6"}
                )

        @rule(system=SYSTEM, turns=TURNS, error=st.sampled_from(REFUSALS), passes=st.booleans())
        def tenant_a_is_refused(self, system: int, turns: list[int], error: str, passes: bool) -> None:
            mw = self.shared.mw
            call = mw.prepare(request(system, turns, [0, 1, 2]), {}, f"{self.shared.name} a")
            mw.refused(call, 400, error)
            mw.settle(call, {"prompt_tokens": 5_000, "completion_tokens": 1}) if passes else mw.fail(call)

        @rule(system=SYSTEM, turns=TURNS, usage=st.sampled_from(JUNK_USAGE))
        def tenant_a_reports_junk_usage(self, system: int, turns: list[int], usage: Any) -> None:
            call = self.shared.mw.prepare(request(system, turns, []), {}, f"{self.shared.name} a")
            self.shared.mw.settle(call, usage)

        @rule(system=SYSTEM, turns=TURNS)
        def tenant_a_leaves_a_request_open(self, system: int, turns: list[int]) -> None:
            self.shared.mw.prepare(request(system, turns, [0, 1, 2]), {}, f"{self.shared.name} a")

        def teardown(self) -> None:
            for world in (getattr(self, "shared", None), getattr(self, "alone", None)):
                if world is not None:
                    assert not [name for name in world.mw.counts if name.startswith("error")]
                    world.mw.close()

    return TwoTenants


def run(stores: Callable[[], str], examples: int) -> None:
    """Run the machine for the given number of examples."""
    run_state_machine_as_test(
        machine(stores),
        settings=settings(
            max_examples=examples,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_tenant_beside_a_hostile_one_gets_the_same_bytes_from_memory() -> None:
    """Tenant B's bodies, plans, labels and receipts are equal with and without tenant A's traffic."""
    run(lambda: "memory://", EXAMPLES)


def test_tenant_in_a_small_store_keeps_its_fair_share() -> None:
    """The same holds if tenant A fills a store that has room for a few hundred prefixes."""
    run(lambda: "memory://?max_prefixes=400", EXAMPLES)
