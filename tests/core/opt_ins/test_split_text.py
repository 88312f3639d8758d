"""The cuts of long texts, the texts that stay whole, and the equality of joined parts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachemw.core.fair_table import FairTable
from cachemw.core.opt_ins import split_text
from cachemw.core.opt_ins.sort_tools import sort_tools
from cachemw.core.opt_ins.split_text import Splitter, joined
from cachemw.simulation.equality import same_request
from tests.bodies import EPHEMERAL, Body, Wire, walk
from tests.long_texts import HEAD, lines, long_bodies


def user(text: Any, role: str = "user") -> Body:
    """Return a body with one message."""
    return {"messages": [{"role": role, "content": text}]}


def sent(
    splitter: Splitter,
    body: Any,
    wire: Wire = "chat",
    owner: str = "me",
    now: float = 0.0,
    model: str = "",
) -> Any:
    """Return a body as it leaves in a request that the provider accepts."""
    left, found = splitter.split(body, wire, owner, now, model)
    splitter.learn(owner, found, now)
    return left


def parts(
    splitter: Splitter,
    text: str,
    role: str = "user",
    owner: str = "me",
    now: float = 0.0,
    model: str = "",
) -> list[str]:
    """Return the parts that a text leaves in."""
    content = sent(splitter, user(text, role), "chat", owner, now, model)["messages"][0]["content"]
    if isinstance(content, str):
        return [content]
    assert all(part.keys() == {"type", "text"} for part in content)
    return [part["text"] for part in content]


# -- where -----------------------------------------------------------------------------------------


def test_dated_prompt_is_cut_before_its_date() -> None:
    """The second text shows the branch point of the first, and each later one is cut there."""
    splitter = Splitter(300.0)
    texts = [f"{HEAD}The time is {hour}:00." for hour in range(10, 15)]
    assert parts(splitter, texts[0]) == [texts[0]]
    for text in texts[1:]:
        assert parts(splitter, text) == [HEAD, text.removeprefix(HEAD)]


def test_known_text_keeps_its_cuts() -> None:
    """The first of the dated prompts comes again in a conversation that goes on, in one part as before."""
    splitter = Splitter(300.0)
    first = f"{HEAD}The time is 10:00."
    for text in (first, f"{HEAD}The time is 11:00.", first, f"{HEAD}The time is 12:00.", first):
        assert len(parts(splitter, text)) == (1 if text == first else 2)


def test_earlier_branch_point_leaves_a_deeper_cut() -> None:
    """Entries end at a deep cut; a text that branches earlier does not move it."""
    splitter = Splitter(300.0)
    deep = [f"{HEAD}{lines('Rules', 20)}{lines(tail, 40)}" for tail in "abcd"]
    parts(splitter, deep[0])
    assert [len(part) for part in parts(splitter, deep[1])] == [6400, 2560]
    assert [len(part) for part in parts(splitter, f"{HEAD}{lines('Other', 40)}")] == [5120, 2560]
    assert [len(part) for part in parts(splitter, deep[2])] == [6400, 2560]
    assert [len(part) for part in parts(splitter, f"{HEAD}{lines('Third', 40)}")] == [5120, 2560]


def test_text_that_came_too_long_ago_causes_no_cut() -> None:
    """A text is not cut if the earlier text came too long ago for its entry to be cached."""
    for passed, count in ((299.0, 2), (300.0, 2), (301.0, 1)):
        splitter = Splitter(300.0)
        parts(splitter, f"{HEAD}a", now=1000.0)
        assert len(parts(splitter, f"{HEAD}b", now=1000.0 + passed)) == count
    splitter = Splitter(300.0)
    for now in (0.0, 250.0, 500.0, 750.0):  # it comes again and again
        parts(splitter, f"{HEAD}a", now=now)
    assert len(parts(splitter, f"{HEAD}b", now=1000.0)) == 2
    # A known text keeps its cut at any later time.
    assert len(parts(splitter, f"{HEAD}b", now=9000.0)) == 2
    assert len(parts(splitter, f"{HEAD}c", now=90_000.0)) == 2


def test_short_first_part_is_not_cut_off() -> None:
    """The saving of a short first part is smaller than the cost of one more part."""
    splitter = Splitter(300.0)
    assert {len(parts(splitter, lines("Short", 12) + lines(name, 30))) for name in "abc"} == {1}
    assert [len(part) for part in parts(splitter, lines("Short", 12) + lines("c", 25) + "!")] == [2304, 65]


def test_text_with_several_levels_is_cut_after_each() -> None:
    """A policy, a document and a question in one text are cut after each shared part."""
    splitter = Splitter(300.0)
    for document in ("A", "B"):
        for question in ("x?", "y?"):
            found = parts(splitter, f"{HEAD}{lines(document, 32)}{question}")
    assert [len(part) for part in found] == [5120, 2048, 2]


def test_new_document_is_cut_in_advance() -> None:
    """Once such texts have branched near their ends, a new document is cut before its first branch."""
    splitter = Splitter(300.0)

    def asked(document: str, question: str) -> list[int]:
        return [len(part) for part in parts(splitter, lines(document, 50) + lines(question, 3) + "So?")]

    assert asked("A", "why") == [3395]
    assert asked("A", "who") == [3072, 323]
    assert asked("A", "when") == [3072, 323]
    assert asked("B", "why") == [3072, 323]
    assert asked("B", "who") == [3072, 323]


@pytest.mark.parametrize(
    ("tails", "length", "expected"),
    [
        ([], 10_000, 0),
        ([400], 10_000, 0),  # once is chance
        ([400, 500], 10_000, 9472),
        ([0] * 8 + [400, 500], 10_000, 9472),
        ([0] * 10 + [400, 500], 10_000, 0),  # seldom
        ([400, 500, 9_000], 10_000, 9472),  # the most is shared where the long tail is left out
        ([400, 500, 1_500], 10_000, 8448),
        ([8_000, 8_100], 10_000, 0),  # mostly different
        ([400, 500], 800, 0),  # all of it is a tail
    ],
)
def test_cut_in_advance_leaves_the_best_tail(tails: list[int], length: int, expected: int) -> None:
    """The tail is the one that shares the most text; 0 means no cut."""
    boundaries = [(offset, b"") for offset in range(256, length, 256)]
    assert split_text._cut_in_advance(boundaries, 0, length, tails) == expected


def test_cut_in_advance_needs_new_text() -> None:
    """A shared text gives no reason for a cut: a long question stays whole."""
    boundaries = [(offset, b"") for offset in range(256, 10_000, 256)]
    assert split_text._cut_in_advance(boundaries, 8_960, 10_000, [500, 600]) == 0
    assert split_text._cut_in_advance(boundaries, 2_048, 10_000, [500, 600]) == 9_216


def test_growing_text_is_cut_at_its_earlier_end() -> None:
    """A text that continues an earlier one is cut there: the whole earlier text is its first part."""
    splitter = Splitter(300.0)
    text, cut = HEAD, []
    assert parts(splitter, text) == [text]
    for step in range(3):
        cut.append(text)
        text += lines(f"Step {step}", 8)
        found = parts(splitter, text)
        assert "".join(found) == text
        assert ["".join(found[:count]) for count in range(1, len(found))] == cut


def test_split_text_in_the_history_is_not_cut_again() -> None:
    """A client that keeps the sent parts as its history gets no further cuts."""
    splitter = Splitter(300.0)
    for hour in range(10, 13):
        left = sent(splitter, user(f"{HEAD}The time is {hour}:00."))
    assert len(left["messages"][0]["content"]) == 2
    assert sent(splitter, left) is left


def test_text_without_lines_is_cut_after_a_word() -> None:
    """A text of one line is cut after a word, and one without words between characters."""
    splitter = Splitter(300.0)
    words = " ".join(f"word{number}" for number in range(500))
    parts(splitter, f"{words} 1")
    head, tail = parts(splitter, f"{words} 2")
    assert head.endswith(" ")
    assert 2 <= len(tail) < 300
    same_signs = "漢字" * 1000
    parts(splitter, f"{same_signs}1")
    head, tail = parts(splitter, f"{same_signs}2")
    assert head + tail == f"{same_signs}2"
    assert len(tail.encode()) <= 260


@pytest.mark.parametrize("blank", ["\n" * 3, " \n\t\n", "\u3000\n", "\u00a0"])
def test_white_space_makes_no_part_of_its_own(blank: str) -> None:
    """White space after a cut stays with the part before it, since providers refuse blank texts."""
    splitter = Splitter(300.0)
    for hour in range(10, 13):
        parts(splitter, f"{HEAD}The time is {hour}:00.")
    assert parts(splitter, HEAD + blank) == [HEAD + blank]
    splitter, blanks = Splitter(300.0), "\n" * 1280
    assert {len(parts(splitter, blanks + lines(name, 40))) for name in "abc"} == {1}
    assert [len(part) for part in parts(splitter, f"{blanks}{lines('c', 40)}!")] == [3840, 1]


def test_text_has_at_most_sixteen_parts() -> None:
    """A text with any number of levels has at most sixteen parts."""
    splitter = Splitter(300.0)
    text = HEAD
    for step in range(30):
        parts(splitter, text + "?")
        text += lines(f"Level {step}", 6)
    assert len(parts(splitter, text + "!")) == 16


def test_short_text_is_not_cut() -> None:
    """A text under a kilobyte has nothing to gain."""
    splitter = Splitter(300.0)
    assert [len(parts(splitter, lines("Short", 14) + tail)) for tail in "abc"] == [1, 1, 1]
    assert len(splitter._texts) == 0


# -- what ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", ["system", "developer", "user"])
def test_texts_of_system_and_user_are_cut(role: str) -> None:
    """Texts of the system and of users are cut."""
    splitter = Splitter(300.0)
    assert [len(parts(splitter, HEAD + tail, role)) for tail in "abc"] == [1, 2, 2]


@pytest.mark.parametrize("role", ["assistant", "tool", "function", None, 3])
def test_texts_of_other_roles_stay_whole(role: Any) -> None:
    """Answers and results stay whole."""
    splitter = Splitter(300.0)
    assert [len(parts(splitter, HEAD + tail, role)) for tail in "abc"] == [1, 1, 1]


def test_cuts_of_one_owner_do_not_reach_another() -> None:
    """Branch points are learned anew for another namespace, model or role."""
    splitter = Splitter(300.0)
    assert [len(parts(splitter, HEAD + tail, owner="one")) for tail in "ab"] == [1, 2]
    assert len(parts(splitter, f"{HEAD}c", owner="two")) == 1
    assert len(parts(splitter, f"{HEAD}d", role="system", owner="one")) == 1
    assert len(parts(splitter, f"{HEAD}e", owner="one")) == 2
    assert len(parts(splitter, f"{HEAD}f", owner="one", model="another")) == 1


def test_each_part_of_a_message_is_cut_in_its_place() -> None:
    """Each text part is cut by itself; a marker of the client stays at the end of its text."""
    splitter = Splitter(300.0)
    image = {"type": "image_url", "image_url": {"url": "data:"}}
    for tail in "ab":
        last = {"type": "text", "text": HEAD + tail, "cache_control": EPHEMERAL}
        body = user([image, last, {"type": "text", "text": "Why?"}])
        left = sent(splitter, body)
    content = left["messages"][0]["content"]
    assert content == [
        image,
        {"type": "text", "text": HEAD},
        {"type": "text", "text": "b", "cache_control": EPHEMERAL},
        {"type": "text", "text": "Why?"},
    ]
    assert content[0] is image
    assert content[3] is body["messages"][0]["content"][2]


@pytest.mark.parametrize("rest", [{"citations": None}, {"citations": {"enabled": True}}, {"id": 1}])
def test_part_with_other_fields_stays_whole(rest: Body) -> None:
    """Other fields of a part may concern its whole text."""
    splitter = Splitter(300.0)
    for tail in "abc":
        body = user([{"type": "text", "text": HEAD + tail, **rest}])
        assert sent(splitter, body) is body


def test_native_system_field_is_cut() -> None:
    """The field is a string or blocks; the chat format has no such field."""
    splitter = Splitter(300.0)
    for tail in "ab":
        body = {"system": HEAD + tail, "messages": []}
        assert sent(splitter, body) is body
        left = sent(splitter, body, "messages")
    assert left["system"] == [{"type": "text", "text": HEAD}, {"type": "text", "text": "b"}]
    body = {"system": [{"type": "text", "text": f"{HEAD}c"}], "messages": [], "n": 1}
    left = sent(splitter, body, "messages")
    assert left == {
        "system": [{"type": "text", "text": HEAD}, {"type": "text", "text": "c"}],
        "messages": [],
        "n": 1,
    }


@pytest.mark.parametrize(
    "body",
    [
        {}, {"messages": None}, {"messages": "x" * 2000}, {"messages": [None, 3, "x" * 2000]},
        user(None), user(7), user([None, "x" * 2000, {"type": "text"}, {"type": "text", "text": 3}]),
        user("\ud800" * 2000), user([{"type": "text", "text": "x" * 2000, 1: 2}]), user({"type": "text", "text": "x" * 2000}),
    ],
)  # fmt: skip
def test_body_without_texts_stays_as_it_is(body: Any) -> None:
    """Bodies that the parser will refuse come back unchanged."""
    splitter = Splitter(300.0)
    for _ in range(3):
        assert sent(splitter, body) is body


def test_unchanged_parts_are_the_callers_own_objects() -> None:
    """Objects off the path to a change are shared with the caller, and the caller's own are not changed."""
    splitter = Splitter(300.0)
    sent(splitter, user(f"{HEAD}a"))
    body = user(f"{HEAD}b")
    body["messages"].append({"role": "assistant", "content": "Yes."})
    before = copy.deepcopy(body)
    left = sent(splitter, body)
    assert left is not body
    assert left["messages"][1] is body["messages"][1]
    assert body == before


# -- tables ----------------------------------------------------------------------------------------


def test_tables_of_texts_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The texts that came longest ago are forgotten; a text that comes again stays."""
    for name, most in (("_TEXTS", 50), ("_PIECES", 200), ("_OWNERS", 5)):
        monkeypatch.setattr(split_text, name, most)
    splitter = Splitter(300.0)
    for number in range(100):
        found = parts(splitter, f"{HEAD}{number}")
        parts(splitter, lines(f"Document {number}", 30), owner=str(number))
    assert len(found) == 2
    assert len(splitter._texts) == 50
    assert len(splitter._cuts) <= 50
    assert len(splitter._pieces) <= 200
    assert len(splitter._tails) == 5


def bounded(monkeypatch: pytest.MonkeyPatch) -> Splitter:
    """Return a splitter with small tables."""
    for name, most in (("_TEXTS", 60), ("_PIECES", 400), ("_OWNERS", 20)):
        monkeypatch.setattr(split_text, name, most)
    return Splitter(300.0)


def sizes(splitter: Splitter, owner: str) -> list[int]:
    """Return how many entries a namespace has in each table."""
    tables = (splitter._texts, splitter._pieces, splitter._cuts, splitter._tails)
    return [len(table.read(owner)) for table in tables]


def test_texts_of_a_small_namespace_survive_a_flood_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A namespace within its fair share loses no text and no cut to one that sends new texts without end."""
    splitter = bounded(monkeypatch)
    texts = [f"{HEAD}The time is {hour}:00." for hour in range(10, 20)]
    before = [parts(splitter, text) for text in texts]
    kept = sizes(splitter, "me")
    for number in range(150):
        parts(splitter, f"{HEAD}{number}", owner="flood", model=str(number))
        parts(splitter, lines(f"Document {number}", 30) + "!", owner="flood")
    assert sizes(splitter, "me") == kept
    assert sizes(splitter, "flood")[0] <= 50
    assert [parts(splitter, text) for text in texts] == before
    assert len(parts(splitter, f"{HEAD}The time is 23:00.")) == 2


def test_tails_of_one_namespace_do_not_reach_another() -> None:
    """A cut in advance follows the namespace's own texts only."""
    splitter = Splitter(300.0)
    for document in "ABC":
        for question in ("why", "who", "when"):
            text = lines(document, 50) + lines(question, 3)
            parts(splitter, text, owner="one")
    assert len(parts(splitter, lines("D", 50) + lines("why", 3), owner="one")) == 2
    assert len(parts(splitter, lines("D", 50) + lines("why", 3), owner="other")) == 1


def test_texts_of_a_request_that_was_not_accepted_teach_nothing() -> None:
    """A text is cut by those of accepted requests alone, and leaves nothing behind itself."""
    splitter = Splitter(300.0)
    for tail in "abc":
        body = user(HEAD + tail)
        left, found = splitter.split(body, "chat", "me", 0.0)
        assert left is body
        assert len(found) == 1
    assert sizes(splitter, "me") == [0, 0, 0, 0]
    parts(splitter, f"{HEAD}d")
    for tail in "ef":
        left, _ = splitter.split(user(HEAD + tail), "chat", "me", 0.0)
        assert len(left["messages"][0]["content"]) == 2
    assert sizes(splitter, "me")[0] == 1


def test_texts_of_requests_at_the_same_time_stay_as_the_first_left() -> None:
    """A text that two requests brought at once is known as the one left that was accepted first."""
    splitter = Splitter(300.0)
    text = f"{HEAD}a"
    _, early = splitter.split(user(text), "chat", "me", 0.0)
    parts(splitter, f"{HEAD}b")
    left, late = splitter.split(user(text), "chat", "me", 0.0)
    assert len(left["messages"][0]["content"]) == 2
    splitter.learn("me", early, 1.0)
    splitter.learn("me", late, 2.0)
    assert parts(splitter, text) == [text]


def test_hashes_of_texts_depend_on_the_key() -> None:
    """Without the key no hash in the tables can be computed from a text."""
    kept = []
    for key in (b"one", b"other", b"one"):
        splitter = Splitter(300.0, key)
        parts(splitter, f"{HEAD}a")
        kept.append({*splitter._texts.read("me"), *splitter._pieces.read("me")})
    assert kept[0] == kept[2]
    assert not kept[0] & kept[1]


def test_long_text_has_few_pieces() -> None:
    """Pieces grow with the text before them: a megabyte has hundreds, not thousands."""
    raw = lines("Row", 16_384).encode()
    boundaries = [offset for offset, _ in split_text._boundaries(raw, 0)]
    assert len(boundaries) < 700
    starts = [0, *boundaries[:-1]]
    assert all(
        end - start <= max(256, start // 128) + 64 for start, end in zip(starts, boundaries, strict=True)
    )


def test_tables_hold_no_text() -> None:
    """The tables hold hashes, offsets and counts."""
    splitter = Splitter(300.0)
    for tail in ("xyzzy", "plugh"):
        parts(splitter, f"{HEAD}{tail} {HEAD}")
    splitter.mark_in_flight("me", splitter.split(user(f"{HEAD}under way {HEAD}"), "chat", "me", 0.0)[1], 0.0)
    tables = [table for table in vars(splitter).values() if isinstance(table, FairTable)]
    kept = repr([vars(splitter), *map(vars, tables)])
    assert len(tables) == 5
    assert all(map(len, tables))
    assert all(repr(piece) in kept for piece in splitter._pieces.read("me"))
    assert not any(word in kept for word in ("Policy", "line", "xyzzy", "plugh"))


# -- promises --------------------------------------------------------------------------------------


def plain_texts(body: Body) -> list[str]:
    """Return all texts that are content."""
    return [
        node
        for path, node in walk(body)
        if isinstance(node, str)
        and path[0] in ("messages", "system")
        and path[-1] in ("text", "content", "system")
    ]


def test_joined_parts_equal_the_original_texts() -> None:
    """Random bodies come again: joined texts are equal, objects unchanged, no part blank, markers kept."""
    cut = 0

    @settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(long_bodies(), min_size=1, max_size=4))
    def arrive(drawn: list[tuple[Wire, Body]]) -> None:
        nonlocal cut
        splitter = Splitter(300.0)
        first: list[Any] = []
        for wire, body in [*drawn, *drawn]:
            before, identities = copy.deepcopy(body), {path: id(node) for path, node in walk(body)}
            left = sent(splitter, body, wire)
            assert body == before
            assert {path: id(node) for path, node in walk(body)} == identities
            assert joined(left) == joined(body)
            if wire == "chat":
                assert same_request(body, left, split_text=True)
            assert sum("cache_control" in node for _, node in walk(left) if isinstance(node, dict)) == sum(
                "cache_control" in node for _, node in walk(body) if isinstance(node, dict)
            )
            came = plain_texts(body)
            assert all(text.strip() for text in plain_texts(left) if text not in came)
            cut += left is not body
            first.append(left)
        # A known text leaves with the same cuts.
        assert first[: len(drawn)] == first[len(drawn) :]

    arrive()
    assert cut > 50


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(long_bodies(), min_size=1, max_size=3))
def test_split_and_sort_are_independent(drawn: list[tuple[Wire, Body]]) -> None:
    """Sorting before or after the split gives the same body."""
    one, other = Splitter(300.0), Splitter(300.0)
    for wire, body in drawn:
        assert sort_tools(sent(one, body, wire)) == sent(other, sort_tools(body), wire)


def test_joined_distinguishes_other_texts() -> None:
    """The equality sees a changed, lost or moved text, and ignores markers."""
    one = user([{"type": "text", "text": "ab"}, {"type": "image"}, {"type": "text", "text": "c"}])
    same_texts = [{"type": "text", "text": "a", "cache_control": EPHEMERAL}, {"type": "text", "text": "b"}]
    assert joined(one) == joined(user([*same_texts, {"type": "image"}, {"type": "text", "text": "c"}]))
    assert joined(user("ab", "system")) == joined(user(same_texts, "system"))
    assert joined({"system": "ab"}) == joined({"system": same_texts})
    for texts in (["abc"], ["a", "b "], ["ba"], ["ab", "ab"]):
        assert joined(user("ab")) != joined(user([{"type": "text", "text": text} for text in texts]))
    assert joined(one) != joined(user([{"type": "text", "text": "abc"}, {"type": "image"}]))


def test_text_in_flight_gives_a_branch_point_until_released() -> None:
    """A request that leaves before another's response finds the branch point; a failed one leaves none."""
    splitter, first = Splitter(300.0), user(f"{HEAD}one {HEAD}")
    _, texts = splitter.split(first, "chat", "me", 0.0)
    splitter.mark_in_flight("me", texts, 0.0)
    other = user(f"{HEAD}other {HEAD}")
    assert splitter.split(other, "chat", "me", 59.0)[0] is not other
    assert splitter.split(other, "chat", "me", 61.0)[0] is other
    assert splitter.split(first, "chat", "me", 1.0)[0] is first
    splitter.release("me", texts)
    assert splitter.split(other, "chat", "me", 1.0)[0] is other
    assert not len(splitter._in_flight)
