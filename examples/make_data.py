"""Write examples/data anew: small made-up data sets, one for each kind of task, with the columns that real ones have.

    python examples/make_data.py

Texts are put together from phrases, so that a tiny encoder learns something of them within seconds.
"""

import csv
import json
import random
from pathlib import Path

FOLDER = Path(__file__).parent / "data"

PRODUCTS = ("kettle", "backpack", "lamp", "keyboard", "jacket", "blender", "tent", "speaker", "chair", "watch")
OPENINGS = ("I bought this {} in spring.", "This is my second {}.", "The {} was a present.", "We use the {} every day.")
OPINIONS = {
    1: ("It broke on the first day.", "A complete waste of money.", "Terrible, I want a refund.", "Useless and ugly."),
    2: ("It feels cheap and loose.", "Disappointing for the price.", "It works, but badly.", "I expected more of it."),
    3: ("It is okay, nothing special.", "Average, it does its job.", "Neither good nor bad.", "Fine for now and then."),
    4: ("Good, with one small scratch.", "Works well most days.", "Solid, if a bit heavy.", "I like it, mostly."),
    5: ("Absolutely perfect!", "The best one I ever had.", "Wonderful, I recommend it.", "I love everything about it."),
}
CLOSINGS = ("", "Delivery took three days.", "My brother has one too.", "The box was blue.", "It came with a manual.")


def reviews(draw: random.Random, count: int) -> list[dict[str, object]]:
    """Return reviews with 1 to 5 stars; one in twelve sounds like its neighbour, as people do."""
    rows = []
    for number in range(count):
        stars = number % 5 + 1
        sounds = stars if draw.random() > 1 / 12 else min(5, max(1, stars + draw.choice((-1, 1))))
        opening = draw.choice(OPENINGS).format(draw.choice(PRODUCTS))
        text = " ".join((opening, draw.choice(OPINIONS[sounds]), draw.choice(CLOSINGS))).strip()
        rows.append({"review": text, "stars": stars})
    return rows


def pairs(draw: random.Random, count: int) -> list[dict[str, object]]:
    """Return two sentences about an order each, and whether the second follows from the first."""
    follows = ("The {} has arrived.", "Somebody delivered the {}.", "The {} is here now.")
    denies = ("The {} never arrived.", "Nobody has delivered the {}.", "The {} is not here.")
    open_ends = ("The {} was expensive.", "The {} is a present for a friend.", "The {} comes in three colours.")
    kinds = (("entailment", follows), ("contradiction", denies), ("neutral", open_ends))
    rows = []
    for number in range(count):
        label, phrases = kinds[number % 3]
        product, day = draw.choice(PRODUCTS), draw.choice(("Monday", "Tuesday", "Friday", "Sunday"))
        way = draw.choice(("by post", "with a courier", "in a small van", "before noon"))
        premise = f"On {day} the {product} came {way}."
        rows.append({"premise": premise, "hypothesis": draw.choice(phrases).format(product), "label": label})
    return rows


def tickets(draw: random.Random, count: int) -> list[dict[str, object]]:
    """Return messages to a support desk, and how urgent they are, from 0 to 1."""
    problems = {
        9: ("The whole shop is down.", "Nobody can log in.", "Customer data is public."),
        6: ("Payments fail now and then.", "The export stops halfway.", "Search is very slow today."),
        3: ("A button is in the wrong place.", "The logo looks blurred.", "One page has a spelling mistake."),
        1.5: ("How do I change my password?", "Where do I find the invoice?", "Thank you for the quick answer."),
    }
    words = {1: "Please hurry!", 0: "", -1: "There is no rush."}
    rows = []
    for _ in range(count):
        base, word = draw.choice(list(problems)), draw.choice(list(words))
        text = f"{draw.choice(('Hello.', 'Good morning.', 'Hi there.'))} {draw.choice(problems[base])} {words[word]}"
        rows.append({"text": text.strip(), "score": round((base + word + draw.uniform(-0.3, 0.3)) / 11, 2)})
    return rows


PEOPLE = ("Anna Berg", "Tom Reed", "Mary Stone", "Omar Diaz", "Lena Fuchs", "Paul Martin", "Sofia Rossi", "Jan Novak")
TOWNS = ("Oslo", "Lisbon", "New York", "Vienna", "Cape Town", "Kyoto", "Lima", "Porto")
FIRMS = ("Acme", "Blue Harbour", "Northwind", "Contoso", "Red Maple", "Globex")


def tags(draw: random.Random, count: int) -> list[dict[str, object]]:
    """Return words, and a tag for each: persons, places and companies begin with B- and go on with I-."""
    forms = ("{PER} works for {ORG} in {LOC} .", "In {LOC} , {PER} met a customer .", "{ORG} opens a shop in {LOC} .")
    forms += ("Yesterday {PER} left {ORG} .", "The train to {LOC} is late .", "{PER} wrote to {PER} about {ORG} .")
    names = {"PER": PEOPLE, "LOC": TOWNS, "ORG": FIRMS}
    rows = []
    for _ in range(count):
        tokens, ner_tags = [], []
        for word in draw.choice(forms).split():
            kind = word.strip("{}")
            parts = draw.choice(names[kind]).split() if kind in names else [word]
            tokens += parts
            ner_tags += ["O"] if kind not in names else [f"B-{kind}", *[f"I-{kind}"] * (len(parts) - 1)]
        rows.append({"tokens": tokens, "ner_tags": ner_tags})
    return rows


def answers(draw: random.Random, count: int) -> list[dict[str, object]]:
    """Return questions with the text that answers them, and where in it the answer begins, as SQuAD writes it."""
    rows = []
    for number in range(count):
        facts = {
            "Who": ("Who made the {}?", f"made by {draw.choice(PEOPLE)}"),
            "Where": ("Where is the {}?", f"kept in {draw.choice(TOWNS)}"),
            "When": ("When was the {} sold?", f"sold in {draw.randint(1990, 2024)}"),
        }
        product = draw.choice(PRODUCTS)
        order = draw.sample(list(facts), 3)
        context = f"The {product} was " + ", ".join(facts[kind][1] for kind in order) + "."
        question, fact = facts[list(facts)[number % 3]]
        text = fact.split(" ", 2)[2]
        answer = {"text": [text], "answer_start": [context.index(text)]}
        rows.append({"question": question.format(product), "context": context, "answers": answer})
    return rows


def write_csv(name: str, rows: list[dict[str, object]]) -> None:
    """Write rows to a csv."""
    with (FOLDER / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def write_jsonl(name: str, rows: list[dict[str, object]]) -> None:
    """Write rows to a jsonl."""
    (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def main() -> None:
    """Write every file."""
    draw = random.Random(7)
    FOLDER.mkdir(exist_ok=True)
    every_review = reviews(draw, 600)
    write_csv("reviews.csv", every_review)
    # The same texts as somebody has them who has labelled some: a few labels, the rest as plain texts.
    write_csv("few.csv", every_review[:300])
    (FOLDER / "texts.txt").write_text("".join(f"{row['review']}\n" for row in every_review[300:]), encoding="utf-8")
    write_csv("pairs.csv", pairs(draw, 450))
    write_csv("tickets.csv", tickets(draw, 450))
    write_jsonl("tags.jsonl", tags(draw, 400))
    write_jsonl("answers.jsonl", answers(draw, 450))


if __name__ == "__main__":
    main()
