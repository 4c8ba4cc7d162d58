"""Learning from reward: the policy answers prompts, is scored, and improves. PPO, GRPO and their
kin.

The run folder is that of `posttrain.stages.training`, and besides

    rollouts/       a journal of everything that was sampled, and what it was worth; see
                    `posttrain.stages.online`
    command.json    the settings, for `posttrain replay`

Sampling and training use one copy of the weights. On a CPU, in exact mode, the probabilities that
answers are drawn with are those that training reads, to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from collections.abc import Sequence as Many
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from posttrain.core.errors import ConfigError, DataError
from posttrain.core.events import Reporter
from posttrain.core.files import write_json
from posttrain.core.journal import Journal
from posttrain.core.products import fix_products
from posttrain.core.settings import Needs, ReadsModel, ReadsScorer, Settings, Unless
from posttrain.core.trackers import FILE, FOLDER
from posttrain.core.trackers import check as check_trackers
from posttrain.data.prompts import Prompt, read_prompts
from posttrain.data.rows import Rejects
from posttrain.data.settings import FormatName, PromptingSettings, Rows, Source
from posttrain.engine.settings import OptimiserSettings, UnsetRate
from posttrain.evals import stats
from posttrain.evals.records import cluster_of
from posttrain.methods.rl_options import AlgorithmName, RlOptions
from posttrain.scoring.score import Response
from posttrain.scoring.scorers import (
    SCORERS,
    check_scorer,
    choose_scorer,
    missing,
    open_scorer,
    refuse_unscored,
)
from posttrain.stages import training
from posttrain.stages.folders import Files
from posttrain.stages.stage import Context, stage
from posttrain.stages.training import MAKES, LearnerSettings

if TYPE_CHECKING:
    from posttrain.data.chat import Chat
    from posttrain.data.prompting import Prompting
    from posttrain.engine.loop import Run
    from posttrain.environments.environment import Environment
    from posttrain.methods.credit import Algorithm
    from posttrain.stages.online import Online

fix_products()  # of this process, while it has computed none

ROLLOUTS, COMMAND = "rollouts", "command.json"
HELD_BATCH = 64  # held-out prompts that are answered between two reports of progress

# of a batch of rollouts, where nothing else is said; other algorithms go through it once
PASSES = {"ppo": 4}
ROUNDS = {"dapo": 4}


class PromptsSettings(Settings):
    """Which prompts are answered, and how the model is prompted."""

    data: Rows = Field(
        min_length=1,
        description=(
            "the prompts, given like --data of posttrain sft: prompts alone, or demonstrations "
            "(their last answer is the wanted one); scorers get all columns"
        ),
    )
    validation: Rows = Field((), description="held-out prompts, given like --data")
    format: FormatName = Field(
        "", description="shape of the rows; unset: found from the first row's columns"
    )
    on_bad_row: Literal["stop", "reject"] = Field(
        "stop",
        description=(
            "stop at a row that cannot be used, or write it to rejects.jsonl with the reason and "
            "go on"
        ),
    )
    prompting: PromptingSettings = PromptingSettings()  # type: ignore[call-arg]
    judge_thinking: bool = Field(
        False, description="score all that was written, not the answer without its thinking"
    )


class RewardSettings(Settings):
    """What an answer is worth."""

    scorer: Annotated[str, ReadsScorer(), Unless("reward_model")] = Field(
        "",
        description=(
            "what an answer is worth: exact, contains, number, FILE.py:FUNCTION, …; or give "
            "--reward-model"
        ),
    )
    reward_model: Annotated[str | None, ReadsModel()] = Field(
        None, description="reward model that says what an answer is worth"
    )
    gold: Annotated[str, ReadsScorer()] = Field(
        "",
        description=(
            "a scorer that is never trained on, to see whether what is learned is what is meant"
        ),
    )
    gold_samples: Annotated[int, Needs("gold")] = Field(
        16, ge=1, description="answers of a step that it is asked of at most"
    )

    @property
    def spec(self) -> str:
        """The name of the scorer."""
        return choose_scorer(self.scorer, self.reward_model)


class DrawSettings(Settings):
    """How answers are drawn."""

    n: int = Field(8, ge=1, description="answers a prompt")
    max_tokens: int = Field(256, ge=1, description="tokens of an answer at most")
    temperature: float = Field(1.0, gt=0, description="the logits are divided by it")
    top_k: int = Field(0, ge=0, description="keep the k most likely tokens; 0 keeps all")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="keep the most likely tokens that together have this probability",
    )


class RlOptimiser(OptimiserSettings):
    """AdamW, with what suits learning from reward."""

    unset_rate: ClassVar = UnsetRate(1e-6, lora=1e-5)

    learning_rate: float | None = Field(None, gt=0, description=f"peak learning rate; {unset_rate}")
    schedule: Literal["linear", "cosine", "wsd", "constant"] = Field(
        "constant",
        description=(
            "how the rate falls after warm-up; wsd stays at the peak, then falls over the last "
            "fifth"
        ),
    )


class RlSettings(LearnerSettings):
    """Settings of learning from reward."""

    prompts: PromptsSettings
    reward: RewardSettings = RewardSettings()  # type: ignore[call-arg]
    method: AlgorithmName = Field(
        "grpo", description="how credit is given; docs/explanation/policy-gradients.md"
    )
    epochs: Annotated[float, Unless("steps")] = Field(
        1.0, gt=0, description="passes over the prompts"
    )
    batch_size: int = Field(8, ge=1, description="prompts a step")
    draw: DrawSettings = DrawSettings()  # type: ignore[call-arg]
    passes: int | None = Field(
        None, ge=1, description="times a batch of rollouts is learned from; unset: 1, of PPO 4"
    )
    parts: int = Field(1, ge=1, description="optimiser updates in each of these passes")
    rounds: int | None = Field(
        None,
        ge=0,
        description=(
            "leave out prompts whose answers are all worth the same and draw others, this many "
            "times a step at most; 0 leaves none out. Unset: 0, of DAPO 4"
        ),
    )
    options: RlOptions = RlOptions()  # type: ignore[call-arg]
    reference: Literal["", "copy", "adapters"] = Field(
        "",
        description=(
            "what the policy is to stay near to: a frozen copy of the model that training starts "
            "from, or with --lora that model without adapters; unset: the one that suits"
        ),
    )
    exact: bool | None = Field(
        None,
        description=(
            "draw with the very probabilities that training reads, to the bit. Unset: on a CPU, "
            "where the model allows it"
        ),
    )
    optimiser: RlOptimiser = RlOptimiser()  # type: ignore[call-arg]

    def check(self) -> None:
        if bool(self.reward.scorer) == bool(self.reward.reward_model):
            raise ConfigError(
                "answers need something that scores them",
                cure="give --scorer or --reward-model, one of them",
            )
        check_scorer(self.reward.spec)
        if self.reward.gold:
            check_scorer(self.reward.gold)
            if self.reward.gold == self.reward.spec:
                raise ConfigError(
                    f"--gold {self.reward.gold} is what is trained on: it would notice nothing",
                    cure="give another scorer, or leave --gold out",
                    option="gold",
                )
        for source in (*self.prompts.data, *self.prompts.validation):
            if source.weight is not None or source.share is not None or source.epochs != 1:
                raise ConfigError(
                    f"{source} has a weight, share or epochs, and prompts are asked in turn",
                    cure="leave them out; limit= takes fewer rows, --steps more steps",
                )
        if self.reference == "adapters" and not self.lora:
            raise ConfigError(
                "--reference adapters without --lora", cure="add --lora, or leave --reference out"
            )
        _algorithm(self)
        check_trackers(self.tracking.track)


FILES = Files(
    others=("metrics.jsonl", "adapter", "rejects.jsonl", COMMAND),
    live=("checkpoints", ROLLOUTS, FILE, FOLDER),  # which know themselves whether they are whole
)


@stage(
    "rl",
    RlSettings,
    help="let a model learn from reward: PPO, GRPO, RLOO and their kin",
    makes=MAKES,
    files=FILES,
)
def rl(settings: RlSettings, context: Context) -> dict[str, Any]:
    """Let a model learn from reward: it answers prompts, a scorer says what each answer is worth,
    and answers that were worth more become likelier. Killed at any moment, the same command goes on
    where it was and, on a CPU, ends with the same weights.
    """
    job = Job(settings, context.reporter, context.folder)
    training.rehearse(job.policy, context)
    context.claim()
    given = settings.model_dump(mode="json", exclude_defaults=True)
    command = {"folder": str(Path.cwd()), "settings": given}
    write_json(context.folder / COMMAND, command)
    journal = Journal(
        context.folder / ROLLOUTS, context.inputs.identity(), message=context.reporter.message
    )
    with journal:
        run = job.run(journal, context.folder)
        exported = training.carry_out(run, settings, context)
    return {
        "method": settings.method,
        "scorer": settings.reward.spec,
        **training.progress_summary(run, exported),
        **job.summary(run),
    }


# -------------------------------------------------------------------------- what a run is made of


def _algorithm(settings: RlSettings) -> Algorithm:
    """The algorithm.

    Raises:
        ConfigError: an option that it does not read; too few answers a prompt.
    """
    from posttrain.methods.credit import algorithm

    chosen = algorithm(settings.method)
    values = chosen.values(settings.options)
    if settings.draw.n < chosen.group_min:
        raise ConfigError(
            f"{settings.method} compares the answers to a prompt, and --n is {settings.draw.n}",
            cure=f"give --n {chosen.group_min} or more, or another --method",
            option="n",
        )
    if settings.reference and not values["beta"]:
        raise ConfigError(
            f"--reference {settings.reference} has no effect: --beta is 0",
            cure="leave it out, or give a --beta above 0",
            option="reference",
        )
    return chosen


class Job:
    """A policy, its prompts, and what answers are worth: all that a run is made of, but for its
    journal.

    Args:
        folder: takes rejected rows, where they were asked for; None: nothing is written.
    Attributes:
        policy: as training starts.
        prompts: to learn from. held: held-out ones.
        why_not_exact: why the sampler's numbers are not the trainer's; empty where they are.
    """

    def __init__(self, settings: RlSettings, reporter: Reporter, folder: Path | None) -> None:
        from posttrain.engine.load import resolve
        from posttrain.engine.policy import Policy
        from posttrain.environments.environment import SingleTurn

        self.settings, self.reporter = settings, reporter
        self.algorithm = _algorithm(settings)
        asked = _read(settings, resolve(settings.model), reporter, folder)
        chat, self.prompts, self.held = asked.chat, asked.prompts, asked.held
        self.rejects = asked.rejects
        for name in {settings.reward.spec, settings.reward.gold} & SCORERS.keys():
            for prompts, sources in (
                (self.prompts, settings.prompts.data),
                (self.held, settings.prompts.validation),
            ):
                # which cost nothing: what they cannot judge shows before anything is sampled
                responses = [Response(p.prompt, "", p.known, p.where) for p in prompts]
                absent = missing(SCORERS[name](responses))
                if absent:
                    refuse_unscored(name, absent, len(prompts), "prompts", str(sources[0]), "")
        self.policy = Policy.load(
            settings.model, device=settings.device, lora=settings.lora, seed=settings.seed
        )
        training.introduce(self.policy, settings, reporter)
        self.policy.without_dropout()  # log-probabilities are compared with each other
        if chat.used:  # leave in the exported model how it was talked to
            self.policy.set_chat(chat.template.source, chat.stop)
        self.policy.prompting = asked.prompting
        self.stops = chat.stops
        scorer = open_scorer(settings.reward.spec, settings.device)
        self.environment: Environment = SingleTurn(chat, scorer, settings.prompts.judge_thinking)
        self.why_not_exact = self._use_exact()
        if self.algorithm.value:
            self.policy.add_value_head(settings.seed)

    def _use_exact(self) -> str:
        """Sample with the trainer's own numbers where that is possible; why not, where it is
        not.
        """
        wanted, device = self.settings.exact, self.policy.device.type
        if wanted is False or (wanted is None and device != "cpu"):
            return "exact mode is off"
        draw = self.settings.draw
        why = "answers are drawn from a truncated distribution"
        if not draw.top_k and draw.top_p == 1:
            why = self.policy.use_exact()
        if why and wanted:
            raise ConfigError(f"--exact: {why}", cure="leave it out", option="exact")
        if why:
            self.reporter.message(
                f"sampling is not exact: {why}. The sampler's log-probabilities are corrected for"
            )
        else:
            self.reporter.note("sampling", "exact: log-probabilities are the trainer's to the bit")
        return why

    def sampling(self, **changed: Any) -> Any:
        """How answers are drawn."""
        from posttrain.engine.sampler import Sampling

        draw = self.settings.draw
        return Sampling(**{**draw.model_dump(), "stop_texts": self.stops, **changed})

    def run(self, journal: Journal, folder: Path) -> Run:
        """The run.

        Args:
            journal: open. folder: for log and checkpoints.
        """
        from posttrain.engine.loop import Run

        settings = self.settings
        source = self.source(journal)
        steps = settings.steps or training.whole_steps(settings.epochs * source.steps_per_epoch)
        self.policy.train_with(
            settings.optimiser, activation_checkpointing=settings.activation_checkpointing
        )
        return Run(
            policy=self.policy,
            loss=self.loss(source),
            source=source,
            steps=steps,
            budget=source.budget,
            seed=settings.seed,
            folder=folder,
            reporter=self.reporter,
            held_out=self.held_out if self.held else None,
            watch=source.raised,
            checkpoints=settings.checkpoint,
            validation=settings.validation,
        )

    def source(self, journal: Journal) -> Online:
        from posttrain.data.plan import Plan
        from posttrain.stages.online import Gold, Online

        settings, algorithm = self.settings, self.algorithm
        longest = max(len(prompt.ids) for prompt in self.prompts) + settings.draw.max_tokens
        source = Online(
            policy=self.policy,
            environment=self.environment,
            prompts=self.prompts,
            plan=Plan(len(self.prompts), settings.batch_size, settings.seed),
            params=self.sampling(),
            algorithm=algorithm,
            options=settings.options,
            journal=journal,
            seed=settings.seed,
            budget=self.policy.budget(settings.budget, longest),
            passes=settings.passes or PASSES.get(settings.method, 1),
            parts=settings.parts,
            rounds=ROUNDS.get(settings.method, 0) if settings.rounds is None else settings.rounds,
            exact=not self.why_not_exact,
            scorer_spec=settings.reward.spec,
        )
        if source.control.beta:
            source.reference = self.policy.reference(settings.reference, source.distribution)
        if settings.reward.gold:
            gold = open_scorer(settings.reward.gold, settings.device)
            source.gold = Gold(gold, settings.reward.gold_samples)
        return source

    def loss(self, source: Online) -> Any:
        from posttrain.methods.policy_gradient import policy_gradient

        read = source.distribution
        settings = self.settings
        return policy_gradient(
            settings.method,
            settings.options,
            read.temperature,
            read.truncation,
            longest=settings.draw.max_tokens,
        )

    # ------------------------------------------------------------------------- held-out prompts

    def held_out(
        self, progress: Callable[[int, int], None], before: Any
    ) -> tuple[dict[str, Any], Any]:
        """What the most likely answers to the held-out prompts are worth.

        Returns: `reward` with its interval, paired `difference` from before the first step; and the
            score of every prompt, None where it is missing. The loop's `loss` is minus the reward.
        """
        scores: list[float | None] = []
        params, n = self.sampling(n=1, temperature=0.0, top_k=0, top_p=1.0), len(self.held)
        for start in range(0, n, HELD_BATCH):
            batch = self.held[start : start + HELD_BATCH]
            rollouts = self.environment.act(self.policy, batch, params, [0] * len(batch))
            scores += [s[0].value for s in self.environment.score(batch, rollouts)]
            progress(start + len(batch), n)
        clusters = [cluster_of(prompt.prompt) for prompt in self.held]
        return held_values(scores, before, clusters), scores

    def summary(self, run: Run) -> dict[str, Any]:
        """Means of the first and the last steps, and what became of the rows."""
        records = [record for record in run.log.read() if "loss" in record]
        source: Any = run.source
        return {
            "prompts": len(self.prompts),
            "rows": self.rejects.read,
            "rejected": self.rejects.count,
            "exact": not self.why_not_exact,
            "alarms": [str(alarm) for e in run.log.events() for alarm in source.raised(e)],
            "first_steps": _means(records[:20]),
            "last_steps": _means(records[-20:]),
        }


def held_values(
    scores: list[float | None], before: list[float | None] | None, clusters: list[Any]
) -> dict[str, Any]:
    """The validation's values from the score of every held-out prompt."""
    known = [i for i, score in enumerate(scores) if score is not None]
    if not known:
        raise DataError(
            "no answer to a held-out prompt could be scored",
            cure="give --validation rows with what the scorer reads",
        )
    values = [float(scores[i] or 0.0) for i in known]
    right_or_wrong = set(values) <= {0.0, 1.0}
    interval = stats.share if right_or_wrong else stats.mean
    reward = interval(values, [clusters[i] for i in known])
    out: dict[str, Any] = {
        "loss": -reward.mean,
        "interval": None,
        "reward": reward.json(),
        "sequences": len(values),
        "unscored": len(scores) - len(known),
    }
    if before is not None:
        both = [i for i in known if before[i] is not None]
        paired = stats.share_difference if right_or_wrong else stats.difference
        now, then = ([float(side[i] or 0.0) for i in both] for side in (scores, before))
        if both and (not right_or_wrong or set(then) <= {0.0, 1.0}):
            change = paired(now, then, [clusters[i] for i in both])
            out["difference"] = {"reward": change.json()}
    return out


def _means(records: list[dict[str, Any]]) -> dict[str, float]:
    """Means of what the steps report of rewards and rollouts."""
    reported: dict[str, list[float]] = {}
    for record in records:
        for name, value in record.items():
            if "/" in name or name in ("reward", "gold"):
                reported.setdefault(name, []).append(value)
    return {name: math.fsum(values) / len(values) for name, values in reported.items()}


@dataclass(frozen=True)
class _Asked:
    """What is asked: prompts to learn from, held-out ones, and how they are written."""

    chat: Chat
    prompting: Prompting
    prompts: list[Prompt]
    held: list[Prompt]
    rejects: Rejects


def _read(settings: RlSettings, base: Path, reporter: Reporter, folder: Path | None) -> _Asked:
    """Read the prompts as the model will see them."""
    from posttrain.data.chat import Chat
    from posttrain.data.prompting import Prompting
    from posttrain.engine.load import load_tokenizer, longest_position

    asked, draw = settings.prompts, settings.draw
    remembered = Prompting.read(base)
    prompting = remembered.overridden(asked.prompting)
    chat = Chat.of(load_tokenizer(base), prompting)
    limit = longest_position(base)
    longest = None if limit is None else limit - draw.max_tokens
    reject = asked.on_bad_row == "reject" and folder is not None
    rejects = Rejects(folder / "rejects.jsonl" if reject and folder else None)

    def read(sources: Many[Source]) -> list[Prompt]:
        prompts = read_prompts(sources, chat, rejects, format=asked.format, longest=longest)
        if sources and not prompts:
            raise DataError(
                "there is no prompt that can be used", where=str(sources[0]), cure="give other rows"
            )
        return prompts

    prompts, held = read(asked.data), read(asked.validation)
    rejects.close()
    text = f"{len(prompts):,}, {draw.n} answers each, {settings.batch_size} prompts a step"
    if held:
        text += f"; {len(held):,} held out"
    if described := prompting.described(remembered):
        text += f"; {described}"
    reporter.note("prompts", text)
    return _Asked(chat, prompting, prompts, held, rejects)
