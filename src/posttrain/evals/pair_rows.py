"""Training rows from the scored answers to one prompt: pairs for preference training, and the best
answer as a demonstration.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from posttrain.data.prompts import Prompt
from posttrain.evals.records import Record
from posttrain.scoring.ranking import Answer, Ranking, Rules, rank


@dataclass(frozen=True)
class Group:
    """The answers to one prompt, ranked."""

    prompt: Prompt
    records: list[Record]
    ranking: Ranking

    @classmethod
    def ranked(cls, prompt: Prompt, records: list[Record], rules: Rules) -> Group:
        """The group of a prompt's records, which have a score, an output and `finished`."""
        answers = [
            Answer(record.output, record.values["score"], record.meta["finished"])
            for record in records
        ]
        return cls(prompt, records, rank(answers, rules))

    def pairs(self) -> list[dict[str, Any]]:
        """Rows that `posttrain preference` reads."""
        return [self._pair(i, j) for i, j in self.ranking.pairs]

    def demonstration(self, at_least: float) -> dict[str, Any] | None:
        """A row that `posttrain sft` reads: the best answer; None where its score is lower."""
        if self.ranking.best is None:
            return None
        top = self.records[self.ranking.best]
        if top.value("score") < at_least:
            return None
        (completion,) = _answers(top)
        row = {"completion": completion, "score": top.value("score")}
        return {"prompt": self._shown, **row, **self.prompt.around}

    @property
    def _shown(self) -> Any:
        prompt = self.prompt.prompt
        return prompt if isinstance(prompt, str) else list(prompt)

    def _pair(self, i: int, j: int) -> dict[str, Any]:
        chosen, rejected = self.records[i], self.records[j]
        better, worse = _answers(chosen, rejected)
        return {
            "prompt": self._shown,
            "chosen": better,
            "rejected": worse,
            "margin": chosen.value("score") - rejected.value("score"),
            "chosen_score": chosen.value("score"),
            "rejected_score": rejected.value("score"),
            **self.prompt.around,
            "where": self.prompt.where,
        }


def _answers(*records: Record) -> list[Any]:
    """Answers as rows have them: texts, or where one has thinking all as messages, which keep it
    apart.
    """
    if not any("thinking" in record.meta for record in records):
        return [record.output for record in records]
    answers = []
    for record in records:
        message = {"role": "assistant", "content": record.output}
        if thinking := record.meta.get("thinking"):
            message["reasoning_content"] = thinking
        answers.append([message])
    return answers
