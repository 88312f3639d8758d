"""Generate plausible English from templates, by seed: sentences, paragraphs, headed sections.

Contains: words and the filling of slots. Must not depend on: requests. A slot such as `{who}` is replaced by
one of its phrases, `{n}` by a number and `{money}` by an amount.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

_SLOT = re.compile(r"\{(\w+)\}")
_OPENING = re.compile(r"(?:^|[.?!] )[a-z]")

_PHRASES = {
    "who": "the customer|the account holder|the person who placed the order|the recipient of the parcel"
    "|a business customer|a member of the loyalty programme|the household named on the invoice",
    "staff": "the agent|the shift lead|the returns desk|the billing team|the warehouse|a specialist"
    "|the store manager|the fraud desk",
    "thing": "an order|a parcel|a refund|a replacement part|a gift card|a delivery slot|an invoice"
    "|a warranty claim|a subscription|a price match|a damaged item|a bulk shipment|an exchange",
    "do": "cancel|change|postpone|return|reopen|split|confirm|escalate|track|refund|dispute|insure",
    "when": "within {n} days of delivery|before the parcel leaves the warehouse|on the day of purchase"
    "|after the payment has cleared|while the claim is open|during the first {n} weeks"
    "|no later than {n} hours before the slot begins|once the photographs have been checked",
    "unless": "unless the item was made to measure|unless the account is on hold"
    "|except where local law says otherwise|unless {staff} has agreed in writing"
    "|unless the value is below {money}|except during the holiday period",
    "must": "must|should|is expected to|is required to|has to",
    "because": "because the carrier bills each attempt|so that the record stays complete"
    "|because two of three complaints begin there|so that nobody has to explain it twice"
    "|because the tax office asks for it|so that stock counts stay right",
    "item": "oak side table|linen duvet cover|cast-iron pan|floor lamp|wool rug|folding desk|bread bin"
    "|standing mirror|garden bench|kettle|bookcase|set of six glasses|office chair|cordless drill",
    "colour": "walnut|slate grey|off-white|forest green|terracotta|navy|natural oak|charcoal|sand",
    "fault": "arrived with a crack along one edge|is missing two screws|came in the wrong colour"
    "|stopped working after a week|was left in the rain|does not match the photographs"
    "|was delivered to a neighbour who is away|smells of varnish and will not air out",
    "mood": "I am not in a hurry|This is the second time I write|Please help, guests arrive on Friday"
    "|I have been a customer for {n} years|Happy to send photographs|I would rather not phone",
    "party": "the tenant|the landlord|the insurer|the policy holder|the contractor|the client"
    "|the managing agent|the surveyor|the guarantor|the supplier",
    "duty": "keep written records of|give notice of|bear the cost of|obtain consent for|inspect"
    "|insure|repair|report|certify|restore|allow access for|provide evidence of",
    "matter": "any alteration to the premises|the annual inspection|damage caused by water"
    "|the fire safety equipment|work carried out by third parties|the quarterly statement"
    "|loss of use|changes in occupancy|the boundary walls|shared installations|waste and storage"
    "|electrical work|the deposit and its interest|temporary accommodation",
    "cond": "where the sum exceeds {money}|if {n} days have passed without an answer"
    "|provided that no claim is pending|in so far as the law permits|after a joint visit"
    "|if the other side agrees|at the end of each term|for the first {n} months"
    "|where the defect was known|unless the schedule says otherwise",
    "topic": "payment|deliveries|returns|liability|maintenance|notices|insurance|access|records"
    "|complaints|termination|deposits|repairs|inspections|data protection|interest|subletting",
    "city": "Lisbon|Ghent|Turin|Leeds|Bergen|Graz|Porto|Utrecht|Lyon|Malmö|Kraków|Bilbao|Basel",
    "travel": "the night train|a refundable fare|an aisle seat|the earlier connection|a twin room"
    "|the airport transfer|a meeting room|an extra night|the group booking|a rail pass",
}  # fmt: skip

POLICY = (
    "If {who} asks to {do} {thing}, {staff} {must} answer {when}, {unless}.",
    "{staff} may {do} {thing} {when}; a second request goes to {staff}.",
    "Never promise to {do} {thing} before the record shows it, {because}.",
    "Amounts above {money} need the word of {staff}, {unless}.",
    "Where {who} has waited more than {n} days, offer {money} and note why, {because}.",
    "Ask for the order number first, then for the post code; {staff} will {do} {thing} only with both.",
    "{who} can {do} {thing} up to {n} times a year, {unless}.",
    "For {item} in {colour} the time limit is {n} days, {because}.",
    "When {thing} is late, {staff} {must} call the carrier {when} and tell {who} what was said.",
    "Do not quote internal codes. Say in one sentence what happens next and {when}.",
)
TICKET = (
    "The {item} ({colour}) {fault}.",
    "I ordered the {item} {n} days ago and it {fault}.",
    "{mood}.",
    "Can {staff} {do} {thing} for order {n}-{n}?",
    "You charged me {money} twice and the second time was for {thing}.",
    "Your site says I can {do} {thing} {when}, but the button is grey.",
    "Where is my {item}? The tracking page has said the same thing for {n} days.",
    "I would like to {do} {thing}, {unless}.",
)
CLAUSE = (
    "{party} shall {duty} {matter}, {cond}.",
    "Nothing in this section obliges {party} to {duty} {matter} {cond}.",
    "{party} and {party} share the cost of {matter} in the proportion of {n} to {n}, {cond}.",
    "A sum of {money} falls due {cond}, and {party} may set it off against {matter}.",
    "Failing this, {party} may {duty} {matter} and recover up to {money} from {party}.",
    "For the purposes of this section, {matter} includes {matter} {cond}.",
    "{party} confirms having read the annex on {topic}, dated {n} months before signature.",
    "The time limit is {n} days; it begins when {party} learns of {matter}.",
    "Disputes about {matter} are first put to {party}, whose answer is due {when}.",
)
QUESTION = (
    "Who has to {duty} {matter}, and by when?",
    "What happens if {party} does not {duty} {matter} {cond}?",
    "Up to which amount is {party} liable for {matter}?",
    "Summarise what the text says about {topic} in three sentences.",
    "Is {party} allowed to {duty} {matter} {cond}? Quote the clause.",
    "Which time limits apply to {topic}?",
)
TRIP = (
    "I need to be in {city} by noon and back in {city} the same evening.",
    "Please book {travel} from {city} to {city} for {n} people, at most {money} each.",
    "Is there still time to change {travel} in {city}?",
    "The meeting in {city} moved; can you keep {travel} and drop {travel}?",
    "Compare {travel} with {travel} and tell me which one can be cancelled for free.",
    "What would it cost to add {city} for {n} nights?",
)
REPLY = (
    "I have looked into it: {thing} can be settled {when}, {unless}.",
    "Thank you for waiting. {staff} will {do} {thing}, and you will get a message {when}.",
    "That is possible for {money}. Shall I {do} {thing} now?",
    "I am sorry about that. For the {item} I can offer {money} or a new one in {colour}.",
)


def sentence(rng: random.Random, templates: Sequence[str]) -> str:
    """Return one sentence with every slot filled."""
    text = rng.choice(templates)
    while (filled := _SLOT.sub(lambda slot: _fill(rng, slot[1]), text)) != text:
        text = filled
    return _OPENING.sub(lambda opening: opening[0].upper(), text)


def paragraph(rng: random.Random, templates: Sequence[str], sentences: int) -> str:
    """Return some sentences in a row."""
    return " ".join(sentence(rng, templates) for _ in range(sentences))


def sections(rng: random.Random, templates: Sequence[str], size: int) -> str:
    """Return numbered sections with headings, of `size` characters or slightly more."""
    parts: list[str] = []
    length = 0
    while length < size:
        heading = f"## {len(parts) + 1}. {sentence(rng, ('{topic}',))}"
        parts.append(f"{heading}\n{paragraph(rng, templates, rng.randint(3, 7))}")
        length += len(parts[-1]) + 2
    return "\n\n".join(parts)


def _fill(rng: random.Random, slot: str) -> str:
    if slot == "n":
        return str(rng.randint(2, 60))
    if slot == "money":
        return f"EUR {rng.randint(5, 900)}"
    return rng.choice(_PHRASES[slot].split("|"))
