"""The tables that the corpus is written from: facts with their templates, and the words of its sentences.

A relation pairs every fact with every template: the template's slots take the fact's subjects, and the answer
and a period follow. No prompt has two right answers. This file knows nothing of tokens, of the split or of
randomness.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

__all__ = [
    "BAD_DAY",
    "GOOD_DAY",
    "INDIRECT_OBJECTS",
    "NAMES",
    "OBJECTS",
    "PLACES",
    "RELATIONS",
    "SERIES",
    "Relation",
]


@dataclass(frozen=True, slots=True)
class Relation:
    """Facts of one kind, `(subject, ..., answer)`, and the prompts that ask for the answer."""

    name: str
    facts: tuple[tuple[str, ...], ...]
    templates: tuple[str, ...]


def _relation(name: str, table: str, templates: str) -> Relation:
    """Read `table` (facts split by commas, words by spaces) and `templates` (one a line)."""
    facts = tuple(tuple(entry.split()) for entry in table.split(","))
    return Relation(name, facts, tuple(line.strip() for line in templates.strip().splitlines()))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


DAYS = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = _words("January February March April May June July August September October November December")
NUMBER_WORDS = _words("one two three four five six seven eight nine ten eleven twelve")
SERIES = (DAYS, MONTHS, NUMBER_WORDS)


def _successors() -> str:
    """Write the table of what comes next, where days and months come round again and numbers do not."""
    runs = ((*DAYS, DAYS[0]), (*MONTHS, MONTHS[0]), NUMBER_WORDS)
    return ", ".join(f"{word} {successor}" for run in runs for word, successor in pairwise(run))


RELATIONS = (
    _relation(
        "capitals",
        "France Paris, Italy Rome, Spain Madrid, Germany Berlin, Japan Tokyo, China Beijing, Russia "
        "Moscow, Egypt Cairo, Greece Athens, Portugal Lisbon, Norway Oslo, Sweden Stockholm, Finland "
        "Helsinki, Denmark Copenhagen, Poland Warsaw, Austria Vienna, Hungary Budapest, Ireland Dublin, "
        "England London, Cuba Havana, Peru Lima, Kenya Nairobi, Iran Tehran, Iraq Baghdad, Turkey Ankara, "
        "Canada Ottawa, Thailand Bangkok, Belgium Brussels, Chile Santiago, Ukraine Kyiv, Scotland "
        "Edinburgh, Switzerland Bern",
        """The capital of {} is
        The capital city of {} is
        In {} the capital is
        People who rule {} live in
        The government of {} sits in
        The king of {} has a palace in
        If you visit the capital of {} you visit
        The largest embassy in {} stands in
        Every road in {} leads to
        The president of {} works in""",
    ),
    _relation(
        "languages",
        "France French, Italy Italian, Spain Spanish, Germany German, Japan Japanese, China Chinese, "
        "Russia Russian, Egypt Arabic, Greece Greek, Portugal Portuguese, Norway Norwegian, Sweden "
        "Swedish, Finland Finnish, Denmark Danish, Poland Polish, Austria German, Hungary Hungarian, "
        "England English, Cuba Spanish, Peru Spanish, Kenya Swahili, Iran Persian, Iraq Arabic, Turkey "
        "Turkish, Thailand Thai, Chile Spanish, Ukraine Ukrainian",
        """The language of {} is
        In {} people speak
        The people of {} talk in
        Children in {} learn to read
        The books in {} are written in
        If you live in {} you should learn
        The newspapers of {} are printed in
        Most songs from {} are sung in
        To be understood in {} you must speak
        A letter from {} is written in""",
    ),
    _relation(
        "continents",
        "France Europe, Italy Europe, Spain Europe, Germany Europe, Japan Asia, China Asia, Egypt Africa, "
        "Greece Europe, Norway Europe, Sweden Europe, Poland Europe, Austria Europe, Hungary Europe, "
        "Ireland Europe, England Europe, Cuba America, Peru America, Kenya Africa, Iran Asia, Iraq Asia, "
        "Canada America, Thailand Asia, Belgium Europe, Chile America, Ukraine Europe, Switzerland Europe",
        """The continent of {} is
        The country of {} lies in
        On the map {} is a part of
        You can find {} in
        The land of {} belongs to
        The mountains of {} rise in
        A trip to {} is a trip to
        The rivers of {} flow through
        The ships from {} come from
        We know that {} is in""",
    ),
    _relation(
        "opposites",
        "hot cold, cold hot, big small, small big, fast slow, slow fast, old new, new old, wet dry, dry "
        "wet, light dark, dark light, hard soft, soft hard, high low, low high, full empty, empty full, "
        "strong weak, weak strong, rich poor, poor rich, open closed, closed open, early late, late "
        "early, happy sad, sad happy, good bad, bad good, loud quiet, quiet loud, clean dirty, dirty "
        "clean, sweet bitter, bitter sweet, near far, far near, thick thin, thin thick",
        """The opposite of {} is
        If it is not {} then it is
        The word {} is the reverse of
        He wanted it {} but it was
        Things that are {} are never
        One was {} and the other was
        It used to be {} and now it is
        Not {} at all but
        She asked for {} and got
        Some are {} while others are""",
    ),
    _relation(
        "plurals",
        "child children, man men, woman women, tooth teeth, foot feet, mouse mice, goose geese, cat cats, "
        "dog dogs, house houses, tree trees, book books, box boxes, city cities, baby babies, leaf "
        "leaves, knife knives, wolf wolves, car cars, chair chairs, table tables, bird birds, flower "
        "flowers, horse horses, bus buses, dish dishes, key keys, shoe shoes, cow cows, pig pigs, star "
        "stars, boat boats",
        """The plural of {} is
        There is one {} here and there are two
        I have one {} and you have many
        First we saw one {} and then three
        A single {} is less than several
        More than one {} makes
        Instead of one {} they found ten
        She drew one {} and he drew four
        Count one {} or count more
        With another {} you have a pair of""",
    ),
    _relation(
        "colors",
        "banana yellow, snow white, grass green, coal black, blood red, sky blue, milk white, tomato red, "
        "lemon yellow, night black, sea blue, frog green, chocolate brown, pumpkin orange, carrot orange, "
        "elephant gray, cherry red, soil brown, salt white, spinach green, sun yellow, violet purple, "
        "plum purple, flamingo pink, ash gray, cucumber green, strawberry red",
        """The color of the {} is
        We all know that the {} is colored
        To paint the {} you need paint that is
        In the picture the {} was painted
        Look at the {} and you see something
        The {} has a color called
        When I think of the {} I think of
        The shade of the {} is mostly
        A drawing of the {} should be
        Her dress was like the {} because it was""",
    ),
    _relation(
        "sounds",
        "dog barks, cat meows, cow moos, sheep bleats, horse neighs, pig oinks, duck quacks, lion roars, "
        "wolf howls, snake hisses, bee buzzes, frog croaks, owl hoots, mouse squeaks, rooster crows, hen "
        "clucks, crow caws, donkey brays, elephant trumpets, pigeon coos, turkey gobbles, bear growls, "
        "monkey chatters, cricket chirps, sparrow tweets",
        """Listen how the {}
        Every day the {}
        Out on the farm the {}
        At night the {}
        The children laugh because the {}
        If it is hungry then the {}
        All day long the {}
        Some animals sing but the {}
        From the window I hear that the {}
        The sound is clear when the {}""",
    ),
    _relation(
        "young",
        "dog puppy, cat kitten, cow calf, sheep lamb, horse foal, pig piglet, duck duckling, lion cub, "
        "bear cub, frog tadpole, hen chick, goat kid, deer fawn, goose gosling, kangaroo joey, swan "
        "cygnet, butterfly caterpillar, rabbit bunny, spider spiderling, seal pup, tree sapling, human "
        "baby",
        """The young of the {} is called the
        A little {} is named a
        Before it grows up the {} is a
        The mother {} takes care of her
        The baby of the {} is the
        When the {} was born it was a
        Behind the big {} walks a small
        The offspring of a {} is a
        The old {} was once a
        The {} and its young""",
    ),
    _relation(
        "pasts",
        "go went, eat ate, run ran, see saw, take took, give gave, come came, write wrote, sing sang, "
        "swim swam, drink drank, drive drove, fly flew, speak spoke, break broke, buy bought, bring "
        "brought, catch caught, teach taught, think thought, sleep slept, find found, make made, know "
        "knew, grow grew, begin began, win won, lose lost, sell sold, tell told, feel felt, build built, "
        "wear wore, throw threw, hide hid, forget forgot",
        """Today I {} but yesterday I
        The past tense of {} is
        Now they {} and before they
        Every day we {} and last year we also
        The verb {} becomes
        You say {} but in the past it is
        If they {} today then last week they
        People {} just as long ago people
        You often {} because you always
        The present is {} and the past is""",
    ),
    _relation(
        "successors",
        _successors(),
        """After {} comes
        The one after {} is
        Right behind {} follows
        When {} is over it is time for
        The word {} is followed by
        Next to {} in the list stands
        If it is {} now the next is
        Counting on from {} we say
        You name {} first and second
        We wait through {} until""",
    ),
    _relation(
        "sums",
        ", ".join(f"{a} {b} {a + b}" for a in range(1, 10) for b in range(1, 10)),
        """{} + {} =
        {} plus {} is
        The sum of {} and {} is
        If you add {} and {} you get
        Adding {} to {} gives
        Together {} and {} make
        With {} apples and {} apples we have
        Take {} and then {} more to have
        Put {} with {} and you count
        A number {} larger than {} is""",
    ),
)

NAMES = _words(
    "Mary Anna Alice Emma Laura John Sarah Julia Kate Lucy Tom James Peter Paul David Mark Simon George "
    "Henry Jack Robert Daniel Helen Rachel Susan Martin Oliver Sophie Victor Clara"
)
PLACES = _words("store park school station garden library museum market beach office restaurant hospital")
OBJECTS = _words("drink ring book ball letter gift flower ticket camera sandwich watch basket")

INDIRECT_OBJECTS = (
    "When {a} and {b} went to the {place}, {giver} gave a {object} to",
    "After {a} and {b} arrived at the {place}, {giver} handed a {object} to",
    "While {a} and {b} were working at the {place}, {giver} showed a {object} to",
    "When {a} and {b} found a {object} at the {place}, {giver} decided to give it to",
    "Then {a} and {b} had a long talk at the {place}, and {giver} passed a {object} to",
    "Friends {a} and {b} met at the {place}, and later {giver} sold a {object} to",
    "As {a} and {b} were leaving the {place}, {giver} threw a {object} to",
    "Yesterday {a} saw {b} at the {place}, where {giver} offered a {object} to",
    "At the {place}, {a} sat next to {b} before {giver} lent a {object} to",
    "Once {a} and {b} came back from the {place} with a {object}, {giver} gave it to",
)

GOOD_DAY = (
    ("happy", "glad", "cheerful"),
    (
        "The sun was warm and the birds sang.",
        "Everyone laughed and danced.",
        "It was a wonderful day.",
        "The food was sweet and the music was lovely.",
        "A kind friend came with a hug and a smile.",
    ),
)
BAD_DAY = (
    ("sad", "upset", "gloomy"),
    (
        "The rain was cold and the wind howled.",
        "Everyone cried and shouted.",
        "It was a terrible day.",
        "The food was bitter and the noise was awful.",
        "A mean stranger took the money and ran away.",
    ),
)
