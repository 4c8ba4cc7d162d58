"""What goes wrong in preference training without a falling loss showing it: each is said once, when it is first seen."""

from __future__ import annotations

from collections import deque
from typing import Any

WINDOW = 20  # steps of which the mean is looked at
FALLEN = 0.5  # nats a token by which the chosen answers may become less likely
SHORTER = 20  # held-out pairs with a shorter chosen answer that it takes to judge them
CORRELATED = 0.6  # of rewards with lengths


class Alarms:
    """Hears every record of a run's log and says what is alarming about it.

    Args:
        compared: whether the method has a reference, which makes rewards log-ratios.
    """

    def __init__(self, compared: bool) -> None:
        self.compared = compared
        self._said: set[str] = set()
        self._first: deque[float] = deque()
        self._last: deque[float] = deque(maxlen=WINDOW)

    def __call__(self, record: dict[str, Any]) -> list[str]:
        found = self._held(record["validation"]) if "validation" in record else self._step(record)
        new = {name: text for name, text in found.items() if name not in self._said}
        self._said.update(new)
        return [f"after step {record['step']}: {text}" for text in new.values()]

    def _step(self, record: dict[str, Any]) -> dict[str, str]:
        """Chosen answers may become less likely as long as rejected ones do so more; but not without end."""
        if not record.get("length/chosen") or "logps/chosen" not in record:
            return {}
        each = record["logps/chosen"] / record["length/chosen"]
        if len(self._first) < WINDOW:
            self._first.append(each)
        self._last.append(each)
        start, now = sum(self._first) / len(self._first), sum(self._last) / len(self._last)
        if len(self._last) < WINDOW or start - now < FALLEN:
            return {}
        return {"collapse": f"the chosen answers have become less likely, too, by {start - now:.2f} nats a token over the last "
                f"{WINDOW} steps. A higher --beta, a lower --learning-rate or --mix dpo=1 sft=0.2 holds them"}

    def _held(self, held: dict[str, Any]) -> dict[str, str]:
        """Rewards that are lengths in disguise."""
        n, accuracy, few = held["sequences"], held["accuracy"], held.get("shorter", 0)
        if few >= SHORTER and accuracy > 0.5 > held["accuracy_where_shorter"] + few**-0.5:  # two standard errors
            where = held["accuracy_where_shorter"]
            return {"shorter": f"rewards are right on {accuracy:.0%} of the held-out pairs, but only on {where:.0%} of the {few} "
                    "whose chosen answer is the shorter: they measure length. Balance the data with posttrain data pairs "
                    "--balance-length, or use simpo, sigmoid_norm or --ld-alpha"}
        if n >= SHORTER and abs(correlation := held.get("length_correlation") or 0) > CORRELATED:
            return {"length": f"rewards go with length (correlation {correlation:+.2f} on {n} held-out pairs): answers are "
                    f"likely to become {'longer' if correlation > 0 else 'shorter'}"}
        return {}
