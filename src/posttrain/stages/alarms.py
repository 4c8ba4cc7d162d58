"""What goes wrong in training on preferences without a falling loss showing it: each alarm is
raised once, when it is first seen.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from posttrain.core.events import Alarm, Held, Step

WINDOW = 20  # steps of which the mean is looked at
FALLEN = 0.5  # nats a token by which the chosen answers may become less likely
DRIFT = 1.5  # factor by which the policy's own answers may become longer, or shorter
# held-out pairs whose chosen answer is the shorter, or the longer, that it takes to judge them
FEWEST = 20
TINY = 0.05  # mean margin below which rewards say next to nothing: σ(0.05) is 0.512
GOOD = 0.6  # accuracy of training steps that looks good


class Alarms:
    """Called with every step and validation of a run, in order; returns the new alarms.

    Attributes:
        raised: all alarms so far.
    Args:
        policy: whether it is a language model that is trained, and not a reward model.
    """

    def __init__(self, policy: bool = True) -> None:
        self.policy = policy
        self.raised: list[Alarm] = []
        self._kinds: set[str] = set()
        self._first: deque[float] = deque()
        self._last: deque[float] = deque(maxlen=WINDOW)
        self._answer: float | None = None  # tokens, before the first step

    def __call__(self, event: Step | Held) -> list[Alarm]:
        seen = self._held(event.values) if isinstance(event, Held) else self._step(event.values)
        new = {kind: text for kind, text in seen.items() if kind not in self._kinds}
        self._kinds.update(new)
        alarms = [Alarm(event.step, text) for text in new.values()]
        self.raised += alarms
        return alarms

    def _step(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Chosen answers may become less likely as long as rejected ones do so more; but not
        without end.
        """
        if not values.get("length/chosen") or "logps/chosen" not in values:
            return {}
        each = values["logps/chosen"] / values["length/chosen"]
        if len(self._first) < WINDOW:
            self._first.append(each)
        self._last.append(each)
        start, now = sum(self._first) / len(self._first), sum(self._last) / len(self._last)
        if len(self._last) < WINDOW or start - now < FALLEN:
            return {}
        return {
            "collapse": (
                f"the chosen answers have become less likely, too, by {start - now:.2f} nats a "
                f"token over the last {WINDOW} steps. A higher --beta, a lower --learning-rate or "
                "--mix dpo=1 sft=0.2 holds them"
            )
        }

    def _held(self, held: Mapping[str, Any]) -> dict[str, str]:
        """Rewards that are lengths in disguise, and answers that become longer or shorter."""
        return {**self._disguise(held), **self._drift(held.get("answer_tokens"))}

    def _drift(self, now: float | None) -> dict[str, str]:
        if now is None:
            return {}
        if self._answer is None:
            self._answer = now
        if 1 / DRIFT <= now / max(1.0, self._answer) <= DRIFT:
            return {}
        way = "longer" if now > self._answer else "shorter"
        return {
            "drift": (
                f"the policy's own answers have become {way}: {self._answer:.0f} tokens before "
                f"training, {now:.0f} now. Is that what the pairs are to teach? A higher --beta, a "
                "lower --learning-rate or --ld-alpha holds them"
            )
        }

    def _disguise(self, held: Mapping[str, Any]) -> dict[str, str]:
        accuracy = held["accuracy"]
        for side, other in (("shorter", "longer"), ("longer", "shorter")):
            few, right = held.get(f"{side}_chosen", 0), held.get(f"accuracy_{side}_chosen")
            if few >= FEWEST and accuracy > 0.5 > right + few**-0.5:  # two standard errors
                more = ", or use simpo, sigmoid_norm or --ld-alpha" if self.policy else ""
                return {
                    "length": (
                        f"rewards are right on {accuracy:.0%} of the held-out pairs, but only on "
                        f"{right:.0%} of the {few} whose chosen answer is the {side}: they say "
                        f"which is {other}. Balance the data with posttrain data pairs "
                        f"--balance-length{more}"
                    )
                }
        return {}


def hardly_moved(held: Mapping[str, Any], relative: bool) -> str:
    """A sentence where rewards are right on more pairs than a coin, and by next to nothing; empty
    where not.

    Accuracy counts signs: it is good as soon as all margins have moved a little the right way.

    Args:
        held: values of a validation of pairs.
        relative: rewards are 0 where nothing was learned, or a reward model's: σ(margin) is how
            sure they are.
    """
    low, margin = held.get("accuracy_low"), held.get("margin")
    if low is None or margin is None or not low > 0.5:
        return ""
    mean, change = margin["mean"], held.get("difference", {}).get("margin")
    what = f"accuracy {held['accuracy']:.2f} at a mean margin of {mean:+.2g}"
    if relative and mean <= 3 * held.get("margin_size_before", 0.0) < TINY:
        return (
            f"{what}, and margins were {held['margin_size_before']:.2g} in size before the first "
            f"step, by rounding alone: the model has hardly moved{_MOVE}"
        )
    if relative and mean < TINY:
        return f"{what}: {_sure(mean)}{_MOVE}"
    if change and change["low"] is not None and change["low"] <= 0 <= change["high"]:
        return (
            f"{what}, which training has not been shown to change: {change['mean']:+.2g} "
            f"[{change['low']:+.2g}, {change['high']:+.2g}]"
        )
    return ""


def hardly_moved_in_steps(means: Mapping[str, float]) -> str:
    """The same from the means of the last training steps, where nothing was held out."""
    accuracy, margin = means.get("rewards/accuracies"), means.get("rewards/margins")
    if accuracy is None or margin is None or not (accuracy >= GOOD and margin < TINY):
        return ""
    return f"accuracy {accuracy:.2f} at a mean margin of {margin:+.2g}: {_sure(margin)}{_MOVE}"


_MOVE = ". A higher --learning-rate or more steps move it"


def _sure(margin: float) -> str:
    """How sure rewards are that differ by so little."""
    sure = 1 / (1 + math.exp(-margin))
    return (
        f"the rewards are {sure:.1%} sure of the better answer, a coin 50%: the model has hardly "
        "moved"
    )
