"""What the curriculum is made of: draws that depend on names alone, splits by content, word lists,
invented names.

A draw reads raw Philox words, not numpy's distributions, whose streams may change between numpy
versions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Final, Literal, TypedDict, TypeVar

from posttrain.core.seeds import derive, generator

T = TypeVar("T")
Split = Literal["train", "validation", "test"]
SPLITS: Final[tuple[Split, ...]] = ("train", "validation", "test")
LEVELS: Final = (1, 2, 3, 4, 5)


class Item(TypedDict):
    """A question with one right answer.

    Attributes:
        key: what identifies the question in any wording: items with one key are the same question,
            and belong to the same split.
        solution: reasoning that ends before the answer; empty if there is nothing to work out.
    """

    skill: str
    level: int
    key: str
    question: str
    answer: str
    solution: str


class Draw:
    """Choices from the stream named by (seed, names): the same on every machine, in every process.

    >>> Draw(0, "example").between(1, 6) == Draw(0, "example").between(1, 6)
    True
    """

    def __init__(self, seed: int, *names: str | int) -> None:
        self._source = generator(seed, *names).bit_generator
        self._words: list[int] = []

    def below(self, n: int) -> int:
        """An integer of 0 … n − 1."""
        if not self._words:
            self._words = self._source.random_raw(64).tolist()  # type: ignore[attr-defined]  # Philox has it
        return self._words.pop() * n >> 64

    def between(self, low: int, high: int) -> int:
        """An integer of low … high, both included."""
        return low + self.below(high - low + 1)

    def chance(self, share: float) -> bool:
        return self.below(1 << 20) < share * (1 << 20)

    def pick(self, values: Sequence[T]) -> T:
        return values[self.below(len(values))]

    def sample(self, values: Sequence[T], k: int) -> list[T]:
        """`k` of the values at different places, in random order."""
        places: dict[int, None] = {}
        while len(places) < k:
            places[self.below(len(values))] = None
        return [values[i] for i in places]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        left = list(values)
        return [left.pop(self.below(len(left))) for _ in values]

    def weighted(self, shares: Mapping[T, int]) -> T:
        """A key of `shares` with probability in proportion to its whole-number value."""
        left = self.below(sum(shares.values()))
        for key, share in shares.items():
            left -= share
            if left < 0:
                return key
        raise ValueError("shares are all zero")

    def different(self, k: int, low: int, high: int) -> list[int]:
        """`k` different integers of low … high."""
        return self.sample(range(low, high + 1), k)


@cache
def _split(bucket: int) -> Split:
    if bucket < 80:
        return "train"
    return "validation" if bucket < 90 else "test"


def split_of(key: str) -> Split:
    """Where a question belongs: 80 % train, 10 % validation, 10 % test, by the hash of its content
    and by nothing else.

    Any seed and any wording gives the same split, so what one seed trains on another never tests.
    """
    return _split(derive(0, "split", key) % 100)


def normalise(answer: str) -> str:
    """An answer with single spaces and none around it: what exact match compares."""
    return " ".join(answer.split())


def listed(values: Sequence[object], last: str = " and ") -> str:
    """'4, 7 and 9'"""
    words = [str(v) for v in values]
    return last.join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def commas(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))


def an(word: str) -> str:
    """'an apple', 'a goat'"""
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"


def chosen(seed: int, name: str, values: Sequence[T], k: int) -> tuple[T, ...]:
    return tuple(Draw(seed, "words", name).shuffled(values)[:k])


# --------------------------------------------------------------------------------------- word lists


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WORDS: Final = _words(
    "cat dog cow hen fox owl bee ant pig rat sun sky sea ice oil egg jam cup box key pen map hat"
    " bed toy bus car bag net moon star tree leaf rock sand snow rain wind fire wave hill lake road"
    " farm barn gate door wall roof room desk lamp book page ring rope bell drum coin shoe coat"
    " boot ball kite boat ship cart milk rice salt corn bean pear plum nuts soup cake bird fish"
    " frog goat wolf bear duck deer lion crab king hand foot face nose hair hope game song word"
    " time year stone river cloud storm grass plant bread honey apple lemon peach grape sugar water"
    " table chair clock plate spoon knife glass paper brush shirt scarf glove horse sheep mouse"
    " tiger snake eagle whale house tower field beach shore night light sound train wheel truck"
    " plane green white black brown seven eight three north south dream smile piano garden forest"
    " island valley bridge castle market school window carpet mirror candle basket bottle hammer"
    " ladder needle button ribbon jacket pencil letter orange banana carrot potato tomato butter"
    " cheese pepper rabbit monkey turtle spider kitten donkey doctor farmer singer winter summer"
    " spring autumn silver copper flower village station teacher kitchen blanket morning evening"
    " thunder rainbow feather chicken dolphin penguin biscuit cabbage mountain elephant umbrella"
    " hospital sandwich notebook"
)
THINGS: Final = _words(
    "apples pears plums eggs coins stones shells books cups stamps nuts pens marbles buttons"
    " candles cards beads lemons ribbons bells"
)
CONTAINERS: Final = _words("boxes bags baskets jars crates sacks trays chests")
COLOURS: Final = _words("red blue green yellow brown white black grey orange purple pink golden")
ANIMALS: Final = _words(
    "goat cat dog horse hen duck sheep rabbit donkey parrot turtle pig goose mouse pony crow"
)
JOBS: Final = _words(
    "baker miller smith weaver farmer tailor painter sailor teacher doctor hunter fisher singer"
    " potter carpenter gardener shepherd cook guard clerk"
)
FOODS: Final = _words(
    "bread cheese soup honey rice fish plums cake beans corn apples porridge nuts figs mushrooms"
    " eggs"
)
DAYS: Final = _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS: Final = _words(
    "January February March April May June July August September October November December"
)

# invented names; every list has its own endings, so that a name tells what kind of thing it names
_FIRST = [
    a + b
    for a in _words(
        "Bel Dar Fen Gor Hal Jor Kel Lin Mar Nor Pel Ros Sel Tam Tol Ul Var Wen Yar Zim Brim Cor"
        " Des El"
    )
    for b in _words("a o in ek ira una is ola an eth")
]
_FAMILY = [
    a + b
    for a in _words(
        "Ash Birch Crow Dun Elm Fair Gold Hare Iron Kirk Lamb Moss Nettle Oak Pine Quill"
    )
    for b in _words("well ley man by wright ston")
]
_TOWN = [
    a + b
    for a in _words(
        "Alder Bram Cold Dray Ember Frost Glen Hazel Kings Long Mill North Otter Plum Raven Stone"
    )
    for b in _words("ford mouth wick haven bury gate")
]
_LAND = _words("Ostravia Velmora Tarquia Isendell Quorland Marovia Dorrany Fennmark")
_RIVER = [
    a + b
    for a in _words("Ar Bel Dor Esk Lin Mer Nar Tav Ul Wyn")
    for b in _words("ena isk ora une")
]

FIRST: Final = chosen(0, "first names", _FIRST, 200)
FAMILY: Final = chosen(0, "family names", _FAMILY, 80)
TOWNS: Final = chosen(0, "towns", _TOWN, 60)
LANDS: Final = _LAND
RIVERS: Final = chosen(0, "rivers", _RIVER, 30)
