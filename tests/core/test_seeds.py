"""Seeds: a function of the run's seed and of names, and of nothing else."""

from __future__ import annotations

import hashlib

from posttrain.core.seeds import derive, generator


def test_a_seed_is_the_first_eight_bytes_of_sha256_over_the_names() -> None:
    expected = int.from_bytes(hashlib.sha256(b"7\x1forder\x1f3").digest()[:8], "big") >> 1
    assert derive(7, "order", 3) == expected == 7391995676944021016
    assert 0 <= expected < 2**63


def test_seeds_are_told_apart_by_every_name() -> None:
    names = [
        (7, "order", 3),
        (8, "order", 3),
        (7, "order", 4),
        (7, "noise", 3),
        (7, "order"),
        (7, "order3"),
        (7, "order", "3", ""),
    ]
    assert len({derive(*x) for x in names}) == len(names)
    assert derive(7, "order", 3) == derive(7, "order", "3")


def test_a_generator_starts_from_its_seed() -> None:
    assert generator(7, "a").random() == generator(7, "a").random() != generator(7, "b").random()
