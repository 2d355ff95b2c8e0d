"""`records`: generated customer-service text with labelled private spans, part of the package.

No person, number or address in it is real: telephone numbers have the exchange 555 and e-mail
addresses the domains that are reserved for examples.
"""

import random
import re
from dataclasses import dataclass

# What a private span can be; the other fields of a record are not private.
PRIVATE = ("name", "phone", "account", "email")


@dataclass(frozen=True)
class Record:
    """One customer's message.

    Attributes:
      text: one line.
      spans: (start, end, kind) of each private stretch of the text, in order, `kind` in `PRIVATE`.
      fields: what the message was made from, by name.
      label: the subject of the message, one of `LABELS`.
    """

    text: str
    spans: tuple[tuple[int, int, str], ...]
    fields: dict[str, str]
    label: str


def generate_records(num: int, seed: int) -> list[Record]:
    """Generates messages; the first n of a seed are the same for every `num` and platform.

    About a fifth of them contain nothing private. Labels are equally likely.
    """
    rng = random.Random(f"records {seed}")
    return [_record(rng) for _ in range(num)]


def _record(rng: random.Random) -> Record:
    label = _pick(rng, LABELS)
    template = _pick(rng, TEMPLATES[label])
    if rng.random() < 0.4:
        template = f"{_pick(rng, OPENINGS)} {template}"
    closing = _pick(rng, CLOSINGS)
    # A name in the message may be somebody else's: do not sign with it.
    if rng.random() < 0.4 and not _slots(closing) & _slots(template):
        template = f"{template} {closing}"
    person = (_pick(rng, FIRST_NAMES), _pick(rng, LAST_NAMES))
    fields: dict[str, str] = {}
    text, spans = "", []
    for part in re.split(r"(\{\w+\})", template):
        if not part.startswith("{"):
            text += part
            continue
        kind = part[1:-1]
        if kind not in fields:
            fields[kind] = _value(rng, kind, person)
        if kind in PRIVATE:
            spans.append((len(text), len(text) + len(fields[kind]), kind))
        text += fields[kind]
    return Record(text, tuple(spans), fields, label)


def _slots(template: str) -> set[str]:
    return set(re.findall(r"\{\w+\}", template))


def _value(rng: random.Random, kind: str, person: tuple[str, str]) -> str:
    first, last = person
    if kind == "name":
        return first if rng.random() < 0.15 else f"{first} {last}"
    if kind == "phone":
        area, line = 200 + _below(rng, 800), _digits(rng, 4)
        return _pick(rng, ("({}) 555-{}", "{}-555-{}", "{} 555 {}", "{}555{}")).format(area, line)
    if kind == "account":
        form = _pick(rng, ("{}{}", "{}{}", "{}-{}", "{} {}"))
        return form.format(_digits(rng, 4), _digits(rng, 4))
    if kind == "email":
        first, last = first.lower(), last.lower()
        numbered = f"{first}{_digits(rng, 2)}"
        user = _pick(rng, (f"{first}.{last}", f"{first[0]}{last}", numbered, f"{last}_{first}"))
        return f"{user}@{_pick(rng, DOMAINS)}"
    if kind == "amount":
        return f"${5 + _below(rng, 300)}.{_digits(rng, 2)}"
    if kind == "count":
        return str(2 + _below(rng, 8))
    return _pick(rng, {"product": PRODUCTS, "day": DAYS, "city": CITIES}[kind])


# Only Random.random is promised to give the same numbers in every version of Python.
def _below(rng: random.Random, limit: int) -> int:
    return int(rng.random() * limit)


def _pick(rng: random.Random, options):
    return options[_below(rng, len(options))]


def _digits(rng: random.Random, num: int) -> str:
    return "".join(str(_below(rng, 10)) for _ in range(num))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


TEMPLATES = {
    "billing": (
        "I was charged {amount} twice for the {product}, my account number is {account}.",
        "Why is my bill {amount} this month? Account {account}, name {name}.",
        "Please send the invoice for the {product} to {email}.",
        "This is {name}. The payment of {amount} on {day} did not go through.",
        "Can you explain the fee of {amount} on my last bill?",
        "My name is {name} and I want to change the card on account {account}.",
        "I need a receipt for {amount}, you can reach me at {phone}.",
    ),
    "delivery": (
        "My {product} should have come on {day} and is not here, call me at {phone}.",
        "Where is my order? It was sent to {city} for {name}.",
        "Could you leave the {product} with my neighbour {name} on {day}?",
        "The parcel arrived open and the {product} was missing, please write to {email}.",
        "How long does delivery to {city} take?",
        "The driver may ring {phone} when he is near, I am home on {day}.",
        "Please deliver the {count} boxes to {name} in {city}, not to me.",
    ),
    "refund": (
        "I sent the {product} back on {day} and still wait for {amount}, account {account}.",
        "I would like my money back for the {product}. {name}, {phone}.",
        "The refund of {amount} went to the wrong account, mine is {account}.",
        "How many days does a refund take?",
        "Please confirm the refund of {amount} by mail to {email}.",
        "{name} here, the {product} does not fit and I want to return it.",
        "The shop in {city} refused to take the {product} back.",
    ),
    "access": (
        "I cannot log in with {email}, the page says that it does not know me.",
        "Please reset the password of account {account}, I am {name}.",
        "The code never reaches my phone, the number is {phone}.",
        "My account {account} was locked after {count} attempts.",
        "How do I change my password?",
        "Change my address from {email} to the new one that I gave on {day}, my name is {name}.",
        "Somebody else has signed in as {name} from {city}, please block account {account}.",
    ),
    "cancel": (
        "Please cancel my plan, the account is {account}.",
        "I want to cancel the order of the {product} from {day}, name {name}.",
        "Stop sending me letters, my name is {name} and I live in {city}.",
        "Cancel the subscription of {email} at the end of the month.",
        "Is there a fee if I cancel before {day}?",
        "I have cancelled {count} times already, call {phone} and say why I still pay {amount}.",
    ),
    "repair": (
        "The {product} stopped working on {day}, who can look at it?",
        "My {product} makes a loud noise, call {name} at {phone}.",
        "The screen of the {product} is dark, I bought it in {city} for {amount}.",
        "The {product} needs a new battery, please send the offer to {email}.",
        "I have tried to restart the {product} {count} times.",
        "Repair for {name}, account {account}: the {product} does not switch on.",
    ),
    "appointment": (
        "I need to move my appointment on {day}, my name is {name}.",
        "Can somebody come to {city} on {day}? My number is {phone}.",
        "Please book {name} for {day} and confirm to {email}.",
        "Are you open on {day}?",
        "I waited for {count} hours on {day} and nobody came, account {account}.",
        "The visit on {day} is for my mother, {name}, ring her at {phone}.",
    ),
    "feedback": (
        "The woman who helped me in {city} was very kind, thank her from {name}.",
        "I am happy with the {product}, it was worth the {amount}.",
        "Your shop in {city} is too loud and I waited for {count} hours.",
        "Nobody answers, I wrote on {day} from {email} and called from {phone}.",
        "{name} in your team solved everything in minutes.",
        "I have been a customer for {count} years, account {account}, and was never so angry.",
    ),
}  # fmt: skip
LABELS = tuple(TEMPLATES)
OPENINGS = (
    "Hello!", "Hi there.", "Good morning.", "Good evening.", "Dear team!", "Excuse me.", "Hi.",
    "I hope that you can help me.", "This is urgent.", "I have a question.", "Hello again.",
    "I tried the telephone first.",
)  # fmt: skip
CLOSINGS = (
    "Thank you.", "Thanks a lot!", "Please answer soon.", "Kind regards.", "Best wishes.",
    "I look forward to your answer.", "What can I do?", "Have a nice day.", "Is that possible?",
    "Regards, {name}.", "My number is {phone}.", "You can write to {email}.",
)  # fmt: skip
PRODUCTS = (
    "phone", "laptop", "router", "printer", "tablet", "camera", "kettle", "washing machine", "lamp",
    "coffee machine", "headphones", "keyboard", "monitor", "vacuum cleaner", "bicycle", "armchair",
    "toaster", "radio", "heater", "freezer", "desk", "watch", "speaker", "drill",
)  # fmt: skip
DAYS = (
    "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday",
    "the first of May", "the third of June", "the ninth of October", "the last day of March",
)  # fmt: skip
CITIES = (
    "Boston", "Denver", "Leeds", "Bristol", "Ottawa", "Perth", "Dublin", "Austin", "Cardiff",
    "Halifax", "Portland", "Glasgow", "Auckland", "Tampa", "Calgary", "York", "Omaha", "Newcastle",
)  # fmt: skip
DOMAINS = ("example.com", "example.org", "example.net", "mail.example", "post.example")
FIRST_NAMES = _words(
    """
    Aaron Abigail Ada Adam Adrian Agnes Aisha Alan Albert Alice Amara Amelia Amir Ana Andrea
    Andrew Angela Anita Anna Anthony Anton Arjun Arthur Astrid Audrey Ava Barbara Beatrice Ben
    Bernard Bianca Boris Brenda Brian Bruno Camila Carl Carla Carmen Caroline Cecilia Charles
    Charlotte Chen Chloe Clara Claire Colin Daniel Daria David Deborah Dennis Diana Diego Dmitri
    Dora Edith Edward Elena Eli Elias Elif Elisa Ella Emil Emily Emma Eric Esther Eva Fatima
    Felix Fiona Florence Frances Frank Gabriel George Gloria Grace Gregory Greta Hannah Harold
    Hassan Heather Helen Henry Hugo Ian Ibrahim Ida Ines Ingrid Irene Isaac Isabel Ivan Jack
    Jacob Jana Jane Jasmine Javier Jennifer Joan Joel John Jonas Joseph Joyce Juan Julia Julian
    Karen Kate Keiko Kenji Kevin Khalid Lara Laura Lauren Leila Leo Leon Lewis Lin Linda Lisa
    Louis Lucas Lucia Lydia Magnus Malik Marcus Margaret Maria Mario Mark Martha Martin Mary
    Matteo Maya Mei Melissa Michael Miguel Mina Miriam Mohammed Monica Nadia Naomi Natalie
    Nathan Neil Nicole Nina Noah Nora Olga Oliver Olivia Omar Oscar Pablo Patricia Paul Paula
    Pedro Peter Philip Priya Rachel Rafael Raj Rebecca Ricardo Richard Rita Robert Rosa Rose
    Ruth Samira Samuel Sandra Sara Sergei Simon Sofia Sonia Stefan Susan Tariq Teresa Thomas
    Tobias Vera Victor Vikram Walter Wei William Yara Yusuf Zara Zoe
    """
)
LAST_NAMES = _words(
    """
    Abbott Adams Ahmed Ali Allen Alvarez Andersen Anderson Bailey Baker Banerjee Barnes Bauer
    Becker Bell Bennett Bergman Bianchi Bishop Black Blake Bose Brandt Brooks Brown Bryant Burke
    Burns Butler Campbell Carlson Carter Castillo Chan Chandra Chapman Clark Cole Collins Conti
    Cook Cooper Costa Cox Craig Cruz Dahl Das Davies Davis Dean Delgado Diaz Dixon Doyle Duncan
    Edwards Ellis Eriksen Evans Farrell Ferrari Fischer Fisher Fletcher Flores Ford Foster Fox
    Fraser Garcia Gardner Gibson Gomez Gonzalez Gordon Graham Grant Gray Green Griffin Gupta
    Hahn Hale Hall Hansen Harper Harris Hart Hayes Henderson Herrera Hill Hoffman Holm Holmes
    Howard Huang Hughes Hunt Hussain Ito Iyer Jackson James Jansen Jenkins Jensen Johnson Jones
    Jordan Kaplan Kapoor Kaur Keller Kelly Kennedy Khan Kim King Klein Knight Kowalski Kumar
    Lane Larsen Lee Lewis Li Lindgren Liu Lopez Lucas Lund Lynch Marino Marshall Mason Mehta
    Mendoza Meyer Miller Mills Mitchell Moore Morales Moreno Morgan Morris Murphy Murray
    Nakamura Nelson Nguyen Novak Okafor Olsen Ortiz Owens Palmer Park Parker Patel Pereira Perry
    Peters Petrov Phillips Popov Porter Powell Price Quinn Rahman Ramos Reed Reyes Rhodes Rivera
    Roberts Robinson Rogers Romano Rossi Russell Ryan Sanders Santos Sato Schmidt Schneider
    Scott Shah Sharma Shaw Silva Singh Smith Sokolov Stewart Stone Sullivan Suzuki Tanaka Taylor
    Thompson Torres Turner Vargas Vogel Wagner Walker Wallace Walsh Wang Ward Watson Weber Webb
    West White Wilson Wong Wood Wright Yamamoto Young Zhang Ziegler
    """
)
