"""How often every kind of interval that the package prints holds the true value.

    python benchmarks/interval_coverage.py                    # a table; exit code 1 below a floor
    python benchmarks/interval_coverage.py --times 4000 --out benchmarks/results/DATE-coverage.json

Data are drawn again and again from a known truth, and the intervals that hold it are counted. A
case that has none (all values the same) claims nothing and is not counted; `none` says how often.
"""

from __future__ import annotations

import argparse
import math
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import record

from posttrain.evals import judging, stats
from posttrain.evals.stats import Estimate

Draw = Callable[[np.random.Generator], Estimate]


@dataclass(frozen=True)
class Case:
    """A truth, a way to draw an estimate of it, and the coverage that it may not fall below."""

    kind: str
    name: str
    truth: float
    draw: Draw
    floor: float = 0.93


@dataclass(frozen=True)
class Coverage:
    """How often the interval of a case held the truth, of those there were.

    Attributes:
        below, above: shares of intervals that lay below or above the truth.
        width: mean. none: share of draws without an interval.
    """

    kind: str
    name: str
    coverage: float
    below: float
    above: float
    width: float
    none: float
    floor: float

    def fails(self, times: int) -> bool:
        """Whether it is below its floor by more than three standard errors."""
        error = math.sqrt(self.floor * (1 - self.floor) / times)
        return self.coverage < self.floor - 3 * error


def measure(case: Case, times: int, seed: int) -> Coverage:
    rng = np.random.default_rng([seed, zlib.crc32(f"{case.kind} {case.name}".encode())])
    below = above = none = 0
    width = 0.0
    for _ in range(times):
        found = case.draw(rng)
        if found.low is None or found.high is None:
            none += 1
            continue
        below += found.high < case.truth
        above += found.low > case.truth
        width += found.high - found.low
    n = max(1, times - none)
    return Coverage(
        case.kind,
        case.name,
        1 - (below + above) / n,
        below / n,
        above / n,
        width / n,
        none / times,
        case.floor,
    )


# ------------------------------------------------------------------------------------------- cases


def cases() -> Iterator[Case]:
    yield from shares()
    yield from paired_shares()
    yield from means()
    yield from ratios()


def shares() -> Iterator[Case]:
    """Wilson's; at some n and p it holds less than its level, which is known of it."""
    for n in (30, 100, 300):
        for p in (0.01, 0.02, 0.05, 0.1, 0.5, 0.9, 0.98):

            def share(rng: np.random.Generator, n: int = n, p: float = p) -> Estimate:
                return stats.wilson(int(rng.binomial(n, p)), n)

            yield Case("share", f"n {n}, p {p:g}", p, share, 0.90)
    for n in (10, 30, 100, 300):
        for a, b in ((0.5, 1.5), (5, 0.3)):

            def passes(
                rng: np.random.Generator, n: int = n, a: float = a, b: float = b
            ) -> Estimate:
                return stats.share((rng.binomial(8, rng.beta(a, b, n)) / 8).tolist())

            name = f"{n} prompts, {a / (a + b):.2f} of 8 answers right"
            yield Case("share of answers", name, a / (a + b), passes)
    for clusters in (10, 30, 100):
        for p in (0.02, 0.5, 0.9):
            for alike in (0.0, 0.5, 1.0):

                def clustered(
                    rng: np.random.Generator, c: int = clusters, p: float = p, alike: float = alike
                ) -> Estimate:
                    right = _clustered(rng, c, 5, alike, lambda size: rng.random(size) < p)
                    return stats.share(right.tolist(), _names(c, 5))

                name = f"{clusters} prompts of 5, p {p:g}, alike {alike:g}"
                yield Case("share by cluster", name, p, clustered)
    for n in (30, 300):

        def over_categories(rng: np.random.Generator, n: int = n) -> Estimate:
            hits = [rng.binomial(n, p) for p in (0.5, 0.9, 0.99)]
            each = [stats.wilson(int(x), n) for x in hits]
            return judging.mean_over(each, 3 * n)

        yield Case("mean over categories", f"3 of n {n}", (0.5 + 0.9 + 0.99) / 3, over_categories)


def paired_shares() -> Iterator[Case]:
    for n in (30, 100, 300):
        for differ in (0.0, 0.01, 0.02, 0.05, 0.1, 0.3):
            for gained in (1.0, 0.5):

                def paired(
                    rng: np.random.Generator, n: int = n, d: float = differ, g: float = gained
                ) -> Estimate:
                    return _paired(_signs(rng, n, d, g))

                name = f"n {n}, {differ:.0%} differ, {gained:.0%} of them gained"
                yield Case("paired share", name, differ * (2 * gained - 1), paired)

        def ties(rng: np.random.Generator, n: int = n) -> Estimate:
            return _paired(_signs(rng, n, 0.2, 0.75) * rng.choice([0.5, 1.0], n))

        yield Case("paired share", f"n {n}, half of the differences are ½", 0.075, ties)
    for clusters in (10, 30, 100):
        for differ in (0.02, 0.1, 0.3):
            for alike in (0.0, 0.5, 1.0):

                def clustered(
                    rng: np.random.Generator,
                    c: int = clusters,
                    d: float = differ,
                    alike: float = alike,
                ) -> Estimate:
                    signs = _clustered(rng, c, 5, alike, lambda size: _signs(rng, size, d, 0.75))
                    return _paired(signs, _names(c, 5))

                name = f"{clusters} prompts of 5, {differ:.0%} differ, alike {alike:g}"
                yield Case("paired share by cluster", name, differ / 2, clustered)


def means() -> Iterator[Case]:
    for n in (5, 30, 100, 300):

        def normal(rng: np.random.Generator, n: int = n) -> Estimate:
            return stats.mean(rng.normal(size=n).tolist())

        yield Case("mean", f"n {n}, normal", 0.0, normal)

        def skewed(rng: np.random.Generator, n: int = n) -> Estimate:
            return stats.mean(rng.exponential(size=n).tolist())

        yield Case("mean", f"n {n}, exponential", 1.0, skewed, 0.85 if n < 30 else 0.90)
    for n in (30, 100, 300):
        for differ in (0.02, 0.1, 0.3):

            def sparse(rng: np.random.Generator, n: int = n, d: float = differ) -> Estimate:
                after = (rng.random(n) < d) * rng.normal(1, 1, n)
                return stats.difference(after.tolist(), [0.0] * n)

            name = f"n {n}, {differ:.0%} differ, by 1 ± 1"
            yield Case("paired difference", name, differ, sparse, 0.85)
    for clusters in (5, 10, 30):

        def clustered(rng: np.random.Generator, c: int = clusters) -> Estimate:
            sizes = rng.integers(1, 9, c)
            owner = np.repeat(np.arange(c), sizes)
            values = rng.normal(size=c)[owner] + rng.normal(size=len(owner))
            return stats.mean(values.tolist(), owner.tolist())

        name = f"{clusters} prompts of 1 to 8"
        yield Case("mean by cluster", name, 0.0, clustered, 0.90 if clusters < 30 else 0.93)


def ratios() -> Iterator[Case]:
    for n in (30, 100, 300):

        def loss(rng: np.random.Generator, n: int = n) -> Estimate:
            tokens = rng.geometric(1 / 40, n)
            return stats.ratio((2 * tokens + rng.normal(size=n) * tokens).tolist(), tokens.tolist())

        yield Case("ratio", f"n {n}, nats a token", 2.0, loss, 0.90)

        def taken(rng: np.random.Generator, n: int = n) -> Estimate:
            longer = rng.random(n) < 0.6
            take = np.where(longer, rng.random(n) < 2 / 3, True).astype(float)
            return stats.ratio_difference(
                ((longer * take).tolist(), take.tolist()), (longer.tolist(), [1.0] * n)
            )

        floor = 0.90 if n < 100 else 0.93
        yield Case("difference of ratios", f"n {n}, pairs taken", 0.5 - 0.6, taken, floor)


def _signs(rng: np.random.Generator, n: int, differ: float, gained: float) -> np.ndarray:
    """[n] 1 gained, −1 lost, 0 neither."""
    return rng.choice([1, -1, 0], n, p=[differ * gained, differ * (1 - gained), 1 - differ])


def _paired(signs: np.ndarray, names: list[int] | None = None) -> Estimate:
    after, before = np.maximum(signs, 0), np.maximum(-signs, 0)
    return stats.share_difference(after.tolist(), before.tolist(), names)


def _clustered(
    rng: np.random.Generator,
    clusters: int,
    size: int,
    alike: float,
    draw: Callable[[int], np.ndarray],
) -> np.ndarray:
    """[clusters · size] values, of which a share is that of their cluster, the others their own."""
    shared, own = np.repeat(draw(clusters), size), draw(clusters * size)
    return np.where(rng.random(clusters * size) < math.sqrt(alike), shared, own).astype(float)


def _names(clusters: int, size: int) -> list[int]:
    return np.repeat(np.arange(clusters), size).tolist()


# ------------------------------------------------------------------------------------------ command


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--times", type=int, default=1000, help="draws of every case [1000]")
    parser.add_argument("--seed", type=int, default=0, help="[0]")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    arguments = parser.parse_args()
    results = [measure(case, arguments.times, arguments.seed) for case in cases()]
    print(f"{'interval':24} {'case':48} coverage  width  none")
    for found in results:
        below = "  below its floor" if found.fails(arguments.times) else ""
        print(
            f"{found.kind:24} {found.name:48} {found.coverage:8.3f} {found.width:6.3f} "
            f"{found.none:5.2f}{below}"
        )
    if arguments.out:
        settings = {"times": arguments.times, "seed": arguments.seed, "level": stats.LEVEL}
        result = {**record.header("numpy", "scipy"), "settings": settings}
        record.write({**result, "cases": [asdict(found) for found in results]}, arguments.out)
    return int(any(found.fails(arguments.times) for found in results))


if __name__ == "__main__":
    sys.exit(main())
