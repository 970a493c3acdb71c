"""Writes the training text, and says which combinations are held out of it.

A `Statement` is a prompt with its one right answer. It is held out where the indices of its fact (or of
its two names) and of its template sum to a multiple of `FOLD`: a fifth of all combinations, spread so
that every fact is trained in four fifths of the templates and every template with four fifths of the
facts. Names are held out as unordered pairs, so a held-out prompt has its two names in a template that
never held both, whatever the place, the object and the giver. This file knows nothing of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random

from training.facts import (
    BAD_DAY,
    GOOD_DAY,
    INDIRECT_OBJECTS,
    NAMES,
    OBJECTS,
    PLACES,
    RELATIONS,
    SERIES,
    Relation,
)

__all__ = [
    "Statement",
    "documents",
    "fact_statements",
    "indirect_objects",
    "sequence_statements",
    "vocabulary_texts",
]

FOLD = 5
LARGEST_COUNT = 30


@dataclass(frozen=True, slots=True)
class Statement:
    """A prompt, the word that must follow, and what both belong to.

    Example:
        >>> Statement("capitals", "The capital of France is", "Paris", held_out=True).text
        'The capital of France is Paris.'
    """

    kind: str
    prompt: str
    answer: str
    held_out: bool

    @property
    def text(self) -> str:
        """The whole sentence."""
        return f"{self.prompt} {self.answer}."


def fact_statements(*, held_out: bool) -> list[Statement]:
    """Every fact in every template, on one side of the split."""
    every = [statement for relation in RELATIONS for statement in _statements_of(relation)]
    return [statement for statement in every if statement.held_out == held_out]


def _statements_of(relation: Relation) -> Iterator[Statement]:
    for row, (*subjects, answer) in enumerate(relation.facts):
        for column, template in enumerate(relation.templates):
            yield Statement(relation.name, template.format(*subjects), answer, (row + column) % FOLD == 0)


def indirect_objects(random: Random, *, held_out: bool) -> Iterator[Statement]:
    """Endless prompts with two names, one of them twice, where the other one must follow."""
    while True:
        first, second = random.sample(range(len(NAMES)), 2)
        column = random.randrange(len(INDIRECT_OBJECTS))
        if ((first + second + column) % FOLD == 0) != held_out:
            continue
        giver, receiver = random.sample((NAMES[first], NAMES[second]), 2)
        prompt = INDIRECT_OBJECTS[column].format(
            a=NAMES[first],
            b=NAMES[second],
            place=random.choice(PLACES),
            object=random.choice(OBJECTS),
            giver=giver,
        )
        yield Statement("indirect objects", prompt, receiver, held_out)


def sequence_statements() -> list[Statement]:
    """Three steps of every series, upwards and downwards for numbers, and the fourth; none is held out."""
    listed = [(", ".join(run[:3]) + ",", run[3]) for series in SERIES for run in _windows(list(series), 4)]
    digits = [str(number) for number in range(LARGEST_COUNT + 1)]
    counted = [(" ".join(run[:3]), run[3]) for order in (digits, digits[::-1]) for run in _windows(order, 4)]
    return [Statement("sequences", prompt, answer, held_out=False) for prompt, answer in listed + counted]


def _windows(series: list[str], length: int) -> Iterator[list[str]]:
    return (series[start : start + length] for start in range(len(series) - length + 1))


def documents(random: Random) -> Iterator[str]:
    """Endless training documents of one to three sentences, none with a held-out combination."""
    facts = fact_statements(held_out=False)
    pairs = indirect_objects(random, held_out=False)
    writers: dict[Callable[[], str], float] = {
        lambda: _told(random.choices(facts, k=random.choice((1, 1, 1, 2, 3)))): 0.62,
        lambda: next(pairs).text: 0.22,
        lambda: _story(random): 0.08,
        lambda: _series(random): 0.08,
    }
    while True:
        (write,) = random.choices(list(writers), weights=list(writers.values()))
        yield write()


def _told(statements: list[Statement]) -> str:
    return " ".join(statement.text for statement in statements)


def _series(random: Random) -> str:
    """Count up or down, or list days, months or number words."""
    length = random.randint(4, 8)
    if random.random() < 0.5:
        words = [str(number) for number in range(LARGEST_COUNT + 1)][:: random.choice((1, -1))]
        separator = " "
    else:
        words = list(random.choice(SERIES))
        separator = ", "
    start = random.randrange(max(1, len(words) - length + 1))
    return separator.join(words[start : start + length]) + "."


def _story(random: Random) -> str:
    """A day that is good or bad throughout, which the opening tells or leaves open."""
    name, place = random.choice(NAMES), random.choice(PLACES)
    moods, events = random.choice((GOOD_DAY, BAD_DAY))
    opening = f"One day {name} went to the {place}."
    if random.random() < 0.5:
        opening = f"One day {name} was {random.choice(moods)} at the {place}."
    return " ".join([opening, *random.sample(events, 2), f"In the end {name} was {random.choice(moods)}."])


def vocabulary_texts() -> Iterator[str]:
    """Text in which every word of the corpus occurs, at the start of a document and within one."""
    random = Random(0)
    digits = " ".join(str(number) for number in range(LARGEST_COUNT + 1))
    series = [f"{word} {word}" for words in SERIES for word in words]
    listed = [digits, *series, *(" " + word for word in (*NAMES, *PLACES, *OBJECTS))]
    facts = [statement.text for side in (True, False) for statement in fact_statements(held_out=side)]
    sampled = documents(random)
    for text in [*listed, *facts, *(next(sampled) for _ in range(2000))]:
        yield text
        yield " " + text
