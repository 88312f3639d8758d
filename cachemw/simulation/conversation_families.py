"""Generated conversations of four families, each an endless stream by seed.

Contains: the shared and the varying parts of each family. Must not depend on: arrival times, providers,
planners. The parts that all conversations of a family share depend on the seed alone, the varying parts on
the seed and the conversation's number. A longer stream therefore begins with the shorter one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Mapping
from itertools import count, islice
from typing import Any

from cachemw.simulation import text_generator
from cachemw.simulation.traffic import NOW, Body, Conversation, turns

MODEL = "databricks-claude-sonnet-4-6"
_Message = dict[str, Any]

# name: description; parameters, each "name type description"
_SUPPORT_TOOLS = {
    "find_customer": ("Find a customer.", "email string E-mail address", "phone string With country code"),
    "get_order": ("Get an order with its lines, payments and parcels.", "order_id string Like 4471-08"),
    "list_orders": ("List a customer's orders, newest first.", "customer_id string Id", "limit integer 1-50"),
    "track_parcel": ("Get the carrier's events of a parcel.", "parcel_id string Id", "carrier string Code"),
    "cancel_order": ("Cancel an order that was not packed.", "order_id string Id", "reason string Why"),
    "start_return": ("Open a return.", "order_id string Id", "lines array Numbers", "reason string Why"),
    "refund": ("Pay back an amount.", "order_id string Id", "amount number EUR", "method string How"),
    "send_replacement": ("Send an item again.", "order_id string Id", "line integer Number of the line"),
    "book_slot": ("Book a delivery slot.", "parcel_id string Id", "day string ISO date", "slot string a-d"),
    "search_articles": ("Search the help pages.", "query string Words", "limit integer 1-10"),
    "add_note": ("Write to the customer's record.", "customer_id string Id", "text string Plain text"),
    "hand_over": ("Hand the conversation to a person.", "team string Which", "summary string For them"),
}
_TRAVEL_TOOLS = {
    "search_trains": ("Search connections.", "origin string City", "goal string City", "after string ISO"),
    "search_flights": ("Search flights.", "origin string IATA", "goal string IATA", "day string ISO date"),
    "search_hotels": ("Search rooms.", "city string City", "nights integer Number", "limit number EUR"),
    "hold": ("Hold an offer for 20 minutes.", "offer_id string Id"),
    "book": ("Book an offer that is held.", "offer_id string Id", "cost_centre string Code"),
    "change": ("Change a booking.", "booking_id string Id", "wish string In words"),
    "cancel": ("Cancel a booking.", "booking_id string Id"),
    "policy": ("Look up a rule of the travel policy.", "query string Words"),
}  # fmt: skip
_LABELS = (
    "late_delivery", "damaged_item", "missing_part", "wrong_item", "refund_status", "double_charge",
    "cancel_order", "change_address", "gift_card", "warranty", "price_match", "account_access",
    "invoice_copy", "slot_change", "product_question", "complaint", "praise", "other",
)  # fmt: skip


def support(seed: int, model: str = MODEL) -> Iterator[Conversation]:
    """Yield conversations of a shop's support agent: one system prompt, 12 tools, several turns."""
    rng = _rng(seed, "support")
    head = "You are the support agent of Harbour & Lane, a shop for home goods. Follow the handbook.\n\n"
    system = head + text_generator.sections(rng, text_generator.POLICY, 5_500)
    tools = _tools(rng, _SUPPORT_TOOLS)
    for number in count():
        rng = _rng(seed, "support", number)
        messages = [
            _message("system", system),
            _message("user", text_generator.paragraph(rng, text_generator.TICKET, 3)),
        ]
        for turn in range(rng.randint(2, 6)):
            if turn:
                messages.append(
                    _message("user", text_generator.paragraph(rng, text_generator.TICKET, rng.randint(1, 2)))
                )
            for _ in range(rng.choice((0, 1, 1, 2))):
                messages += _calls(rng, _SUPPORT_TOOLS, rng.choice((1, 1, 1, 2)))
            messages.append(
                _message("assistant", text_generator.paragraph(rng, text_generator.REPLY, rng.randint(1, 3)))
            )
        yield Conversation("support agent", turns(model, messages, tools))


def classifier(seed: int, model: str = MODEL) -> Iterator[Conversation]:
    """Yield single requests of a few-shot classifier: one long system prompt, a short ticket each."""
    rng = _rng(seed, "classifier")
    labels = "\n".join(
        f"- {label}: {text_generator.sentence(rng, text_generator.POLICY)}" for label in _LABELS
    )
    shots = "\n\n".join(
        f"Ticket: {text_generator.paragraph(rng, text_generator.TICKET, 2)}\nLabel: {rng.choice(_LABELS)}"
        for _ in range(45)
    )
    system = f"Answer with the one label that fits the ticket.\n\nLabels:\n{labels}\n\nExamples:\n\n{shots}"
    for number in count():
        rng = _rng(seed, "classifier", number)
        ticket = text_generator.paragraph(rng, text_generator.TICKET, rng.randint(1, 4))
        messages = [_message("system", system), _message("user", f"Ticket: {ticket}\nLabel:")]
        yield Conversation("few-shot classifier", turns(model, [*messages, _message("assistant", "")]))


def documents(seed: int, model: str = MODEL) -> Iterator[Conversation]:
    """Yield conversations about one document each: every request has the document and one question."""
    system = "Answer from the document only. Quote the section you rely on. Say so where it is silent."
    for number in count():
        rng = _rng(seed, "documents", number)
        document = text_generator.sections(
            rng, text_generator.CLAUSE, rng.choice((6_000, 9_000, 14_000, 20_000))
        )
        requests: list[Body] = []
        for _ in range(rng.choice((1, 2, 3, 4, 6, 8))):
            question = text_generator.sentence(rng, text_generator.QUESTION)
            parts = [{"type": "text", "text": text} for text in (document, question)]
            messages = [_message("system", system), {"role": "user", "content": parts}]
            requests += turns(model, [*messages, _message("assistant", "")])
        yield Conversation("document questions", tuple(requests))


def dated(seed: int, model: str = MODEL) -> Iterator[Conversation]:
    """Yield conversations of two travel desks with the time in the system prompt, at its start or midway."""
    rng = _rng(seed, "dated")
    now = f"The time is {NOW}. Never offer a connection that has left."
    rules = text_generator.sections(rng, text_generator.POLICY, 3_000)
    more = text_generator.sections(rng, text_generator.POLICY, 2_500)
    head = "You are the travel desk of Harbour & Lane."
    systems = (f"{now}\n\n{head}\n\n{rules}\n\n{more}", f"{head}\n\n{rules}\n\n{now}\n\n{more}")
    tools = _tools(rng, _TRAVEL_TOOLS)
    for number in count():
        rng = _rng(seed, "dated", number)
        messages = [_message("system", systems[number % 2])]
        for _ in range(rng.randint(1, 4)):
            messages.append(
                _message("user", text_generator.paragraph(rng, text_generator.TRIP, rng.randint(1, 3)))
            )
            if rng.random() < 0.5:
                messages += _calls(rng, _TRAVEL_TOOLS, 1)
            messages.append(
                _message("assistant", text_generator.paragraph(rng, text_generator.REPLY, rng.randint(1, 2)))
            )
        yield Conversation("dated system prompt", turns(model, messages, tools), dated=True)


# By name: the stream, and its weight in mixed traffic.
FAMILIES: Mapping[str, tuple[Callable[[int, str], Iterator[Conversation]], int]] = {
    "support": (support, 3),
    "classifier": (classifier, 10),
    "documents": (documents, 3),
    "dated": (dated, 4),
}


def mixed(seed: int, conversations: int, model: str = MODEL) -> list[Conversation]:
    """Return conversations of all families in random order."""
    rng = _rng(seed, "mix")
    streams = [stream(seed, model) for stream, _ in FAMILIES.values()]
    weights = [weight for _, weight in FAMILIES.values()]
    drawn = (next(rng.choices(streams, weights)[0]) for _ in count())
    return list(islice(drawn, conversations))


def _rng(*parts: object) -> random.Random:
    return random.Random("/".join(map(str, parts)))  # noqa: S311 - traffic, not a secret


def _message(role: str, text: str) -> _Message:
    return {"role": role, "content": text}


def _tools(rng: random.Random, table: Mapping[str, tuple[str, ...]]) -> list[dict[str, Any]]:
    """Return OpenAI tool definitions."""
    tools = []
    for name, (purpose, *parameters) in table.items():
        properties = {}
        for parameter in parameters:
            key, kind, text = parameter.split(" ", 2)
            more: dict[str, Any] = {"items": {"type": "integer"}} if kind == "array" else {}
            properties[key] = {"type": kind, "description": text, **more}
        schema = {"type": "object", "properties": properties, "required": list(properties)[:1]}
        description = f"{purpose} {text_generator.paragraph(rng, text_generator.POLICY, 2)}"
        function = {"name": name, "description": description, "parameters": schema}
        tools.append({"type": "function", "function": function})
    return tools


def _calls(rng: random.Random, table: Mapping[str, tuple[str, ...]], number: int) -> list[_Message]:
    """Return an assistant message that calls tools, and their results."""
    calls, results = [], []
    for _ in range(number):
        name = rng.choice(list(table))
        call_id = f"call_{rng.getrandbits(64):016x}"
        keys = [parameter.split(" ")[0] for parameter in table[name][1:]]
        arguments = json.dumps({key: _value(rng, key) for key in keys})
        function = {"name": name, "arguments": arguments}
        calls.append({"id": call_id, "type": "function", "function": function})
        records = [_record(rng) for _ in range(rng.choice((1, 1, 2, 5)))]
        content = json.dumps({"ok": True, "results": records})
        results.append({"role": "tool", "tool_call_id": call_id, "content": content})
    return [{"role": "assistant", "content": None, "tool_calls": calls}, *results]


def _record(rng: random.Random) -> dict[str, Any]:
    return {
        "id": f"{rng.randint(1000, 9999)}-{rng.randint(10, 99)}",
        "item": text_generator.sentence(rng, ("{item}, {colour}",)),
        "price": rng.randint(500, 90_000) / 100,
        "city": text_generator.sentence(rng, ("{city}",)),
        "status": rng.choice(("packed", "sent", "delivered", "returned", "held")),
        "note": text_generator.sentence(rng, text_generator.REPLY),
    }


def _value(rng: random.Random, key: str) -> Any:
    if key in ("limit", "amount", "line", "nights"):
        return rng.randint(1, 9)
    if key == "lines":
        return [rng.randint(1, 4)]
    if key.endswith("_id"):
        return f"{rng.randint(1000, 9999)}-{rng.randint(10, 99)}"
    return text_generator.sentence(rng, ("{city}", "{topic}", "{item}"))
