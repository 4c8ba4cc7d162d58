"""What is trained on forests: a language model or a reward model, and the verbs they share.

    score(forests, read)                columns, no gradients
    forward_backward(forests, loss)     adds to the gradients
    measure(forests, loss)              the same numbers, without gradients
    step(factor)                        one optimiser update
    save(folder)                        a Hugging Face folder

There is one copy of the weights. On a CPU they are float32; on a GPU bfloat16, and the float32
master belongs to the optimiser.
"""

from __future__ import annotations

import contextlib
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Sequence as Many
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from posttrain.core.defaults import token_budget
from posttrain.core.errors import ConfigError, DataError, ModelError
from posttrain.core.files import PARTIAL
from posttrain.core.seeds import derive
from posttrain.core.types import Columns, Counts, Facts, Loss, Measured, Named, Read
from posttrain.data.forest import TokenForest, Tree, forests
from posttrain.data.prompting import Prompting
from posttrain.engine import distributed, export
from posttrain.engine import lora as adapters
from posttrain.engine.checkpoint import system_errors
from posttrain.engine.export import VALUE_HEAD
from posttrain.engine.kinds import UNQUANTISED
from posttrain.engine.network import Network, Noise, known_positions, quiet, without_dropout
from posttrain.engine.numbers import not_finite
from posttrain.engine.optimiser import Optimiser
from posttrain.engine.router import asked_router
from posttrain.engine.settings import OptimiserSettings


class Learner:
    """A network that can be scored and trained.

    Attributes:
        network: trunk and heads, one module.
        tokenizer: the Hugging Face tokenizer.
        read: what `score` reads by default: log-probabilities, or rewards.
        prompting: how the model was prompted in training; saved with it.
        adapter: the PeftModel around the network's weights, or None.
        source: where the model came from; digest: SHA-256 of its files.
        origin: the folder it was loaded from; None where it was made here.
        optimiser: set by `train_with`.
        tell: called with a sentence that the user should know; a Python warning unless it is set.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Any,
        *,
        source: str = "",
        digest: str = "",
        origin: Path | None = None,
        adapter: Any = None,
        read: Read = Read(),
        prompting: Prompting | None = None,
    ) -> None:
        self.network, self.tokenizer, self.adapter = network, tokenizer, adapter
        self.source, self.digest, self.read = source, digest, read
        self.prompting = prompting or Prompting()
        self.origin = origin
        self.optimiser: Optimiser | None = None
        self.tell: Callable[[str], None] = _warn

    # ------------------------------------------------------------------------------------- facts

    @property
    def device(self) -> torch.device:
        return self.network.device

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the model; one sentence each."""
        return self.network.admission.reasons

    @property
    def longest(self) -> int | None:
        """Positions the model knows; None where its config does not say."""
        return known_positions(self.network.config)

    @property
    def shares_prefixes(self) -> bool:
        """Whether forests run packed, so that a prefix is computed once."""
        return self.network.mode == "forest"

    def budget(self, given: int | None, longest: int = 0) -> int:
        """Tokens a forward pass: as given, or what suits the device, and at least `longest`."""
        return token_budget(given, self.device.type, longest)

    def pack(self, trees: Many[Tree], budget: int) -> list[TokenForest]:
        """Trees as forests of at most `budget` tokens, as this model runs them."""
        return forests(trees, budget, shared=self.shares_prefixes)

    # ------------------------------------------------------------------------------------- verbs

    @torch.no_grad()
    def score(self, forests: Many[TokenForest], read: Read | None = None) -> list[Columns]:
        """What `read` asks of each forest, without gradients and without dropout.

        Args:
            forests: from `pack`.
            read: `self.read` unless given.
        """
        self.network.eval()
        columns = [self.network(forest, read or self.read) for forest in distributed.even(forests)]
        return columns[: len(forests)]

    def forward_backward(
        self,
        forests: Many[TokenForest],
        loss: Loss,
        *,
        probes: Many[TokenForest] | None = None,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> Measured:
        """Add the gradient of a loss over one global batch, forest by forest.

        Args:
            forests: the whole global batch, or this rank's part of it; how it is cut into forests
                changes the result by rounding only.
            loss: the method.
            probes: forests that are scored for `loss.prepare` and not trained on.
            seed: of dropout and noise, which differ from forest to forest.
            noise: applied to the input embeddings.
        Returns: the loss of the global batch, and what the method reports. The loss of a mixture
            whose config asks for it has its router's load-balancing loss inside; see
            `posttrain.engine.router`.
        Raises:
            DataError: nothing in the batch is trained.
        """
        return self._measured(forests, loss, probes, train=True, seed=seed, noise=noise)

    @torch.no_grad()
    def measure(
        self, forests: Many[TokenForest], loss: Loss, *, probes: Many[TokenForest] | None = None
    ) -> Measured:
        """What `forward_backward` would return, without gradients, dropout, and the router's loss
        of a mixture, which says how to train and not how good a model is.
        """
        return self._measured(forests, loss, probes, train=False)

    def _measured(
        self,
        forests: Many[TokenForest],
        loss: Loss,
        probes: Many[TokenForest] | None,
        *,
        train: bool,
        seed: int = 0,
        noise: Noise | None = None,
    ) -> Measured:
        counts = self._counts(forests, loss)
        statistics = self._prepared(forests if probes is None else probes, loss)

        def bound(columns: Columns, facts: Facts) -> Tensor:
            return loss.loss(columns, facts, counts, statistics)

        router = self.network.router if train else None
        read = loss.read if router is None else replace(loss.read, experts=True)
        used = self._used(forests) if router else None
        self.network.train(train)
        # a chunk of the vocabulary's rows knows nothing of rewards and hidden states
        chunked = loss.read.vocabulary and not loss.read.reward and not loss.read.hidden
        inside = bound if train and loss.additive and chunked else None
        total, balance, values = 0.0, 0.0, list[dict[str, Tensor]]()
        for i, forest in enumerate(distributed.even(forests)):
            filler = i >= len(forests)  # it keeps the ranks together, and nothing is learned of it
            with self._seeded(derive(seed, "forward", i)):
                columns = self.network(forest, read, inside, noise=noise)
                facts = forest.facts.to(self.device)
                if filler:  # its zeros reach every parameter
                    if train:
                        _nothing(columns).backward()
                    continue
                value = columns.loss if inside else bound(columns, facts)
                if router is not None:
                    counts_used = columns.experts[0].detach() if used is None else used
                    part = router.loss(columns.experts, counts_used)
                    balance += float(part.detach())
                    value = value + router.coefficient * part
                if train:
                    value.backward()
            total += float(value.detach())
            if loss.report:
                with torch.no_grad():
                    values.append(loss.report(columns, facts, statistics))
        reported = {name: torch.cat([v[name].cpu() for v in values]) for name in _names(values)}
        sums = distributed.total({"loss": total, "balance": balance})
        balanced = sums["balance"] if router else None
        return Measured(sums["loss"], distributed.gathered(reported), balanced)

    @torch.no_grad()
    def _used(self, forests: Many[TokenForest]) -> Tensor | None:
        """[E] how often each expert of a mixture is chosen in the global batch. None where the
        batch is one forest, whose own pass will say.
        """
        if len(forests) == 1 and distributed.ranks() == 1:
            return None
        self.network.eval()
        counts: dict[str, float] = {}
        for i, forest in enumerate(distributed.even(forests)):
            chosen = self.network(forest, Read(logprob=False, experts=True)).experts[0]
            for expert, count in enumerate(chosen.tolist() if i < len(forests) else ()):
                counts[str(expert)] = counts.get(str(expert), 0.0) + count
        assert self.network.router is not None
        names = map(str, range(self.network.router.experts))
        counts = distributed.total({name: counts.get(name, 0.0) for name in names})
        values = [counts[str(i)] for i in range(len(counts))]
        return torch.tensor(values, dtype=torch.float32, device=self.device)

    def _counts(self, forests: Many[TokenForest], loss: Loss) -> Counts:
        """The loss's denominators over the global batch."""
        counts: dict[str, float] = {"any target": 0.0}
        for forest in forests:
            counts["any target"] += forest.N
            for name, count in loss.counts(forest.facts).items():
                counts[name] = counts.get(name, 0.0) + count
        counts = distributed.total(counts)
        if not counts.pop("any target"):
            raise DataError(
                "the batch has no trained token", cure="look at the masks: every sequence needs one"
            )
        return Named(counts)

    @torch.no_grad()
    def _prepared(self, forests: Many[TokenForest], loss: Loss) -> Any:
        """What a loss that couples the batch computes before any gradient."""
        if loss.prepare is None:
            return None
        if distributed.ranks() > 1:
            raise ConfigError(
                "this loss couples the whole batch, and the ranks see a part of it each",
                cure="train with another method, or on one rank",
            )
        read = replace(loss.read, entropy="", collision=False, correct=False)
        columns = self.score(forests, read)
        return loss.prepare(columns, [forest.facts.to(self.device) for forest in forests])

    @contextlib.contextmanager
    def _seeded(self, seed: int) -> Iterator[None]:
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(seed)
            yield

    def train_with(
        self, settings: OptimiserSettings, *, activation_checkpointing: bool = False
    ) -> Optimiser:
        """Make the optimiser that `step` uses. An unset learning rate becomes the settings' own
        default.
        """
        if settings.learning_rate is None:
            rate = settings.unset_rate.of(lora=self.adapter is not None)
            settings = settings.model_copy(update={"learning_rate": rate})
        if activation_checkpointing:
            inner = self.network.inner
            if not inner.supports_gradient_checkpointing:
                raise ConfigError(
                    f"{type(inner).__name__} cannot compute its activations twice",
                    cure="leave --activation-checkpointing out; a lower --budget saves memory, too",
                )
            # older transformers know only the second name, newer ones warn of it
            enable = getattr(inner, "activation_checkpointing_enable", None)
            enable = enable or inner.gradient_checkpointing_enable
            enable({"use_reentrant": False})
        self.optimiser = Optimiser(self.network.weights(), settings)
        return self.optimiser

    def step(self, factor: float = 1.0) -> float:
        """One update from the gradients added up so far, then clear them.

        Args:
            factor: on the peak learning rate.
        Returns: the gradient norm before clipping; nothing is updated where it is not finite.
        """
        assert self.optimiser is not None, "call train_with first"
        return self.optimiser.step(factor)

    def without_dropout(self) -> None:
        """Switch the model's dropout off for good, but for that of adapters."""
        without_dropout(self.network)

    def save(self, folder: str | Path) -> None:
        """Write a Hugging Face folder: exactly the parameters that are computed with, adapters
        merged; a value head, and how the model is prompted, beside them; and what else was in the
        model's own folder.

        Raises:
            ModelError: it is not finite, or transformers does not write it.
        """
        folder, inner = Path(folder), self.network.inner
        with quiet(), system_errors(), export.explained(self.source):
            if changed := export.mend_generation(inner):
                self.tell(changed)
            keep = self._kept(export.as_saved(inner, self._named_tensors()))
            state = adapters.merged(inner) if self.adapter is not None else None
            value_head = self.network.value_head
            head = {} if value_head is None else value_head.state_dict()
            self._check_finite({**(state or inner.state_dict()), **head})
            export.write(folder, inner, state, keep)
            if head:
                save_file(
                    {name: tensor.cpu() for name, tensor in head.items()}, folder / VALUE_HEAD
                )
            self.tokenizer.save_pretrained(folder)
        self.prompting.write(folder)

    def _check_finite(self, tensors: Mapping[str, Tensor]) -> None:
        """Refuse to write tensors that hold a NaN or an infinity."""
        if name := not_finite(tensors):
            raise ModelError(
                f"the result of {self.source or 'the model'} is not finite ({name}), and was not "
                "written",
                cure="lower the learning rate; a model that is so from the start must be replaced",
            )

    def rehearse(self, folder: Path) -> list[str]:
        """Try all that can fail when the result is written, before anything is trained.

        Args:
            folder: where the result will lie; nothing is left there.
        Returns: what of the result the user should know, one sentence each.
        Raises:
            PosttrainError: it could not be written; the message says why and what to do.
        """
        inner = self.network.inner
        if getattr(inner, "is_quantized", False):
            raise ModelError(
                f"{self.source} holds quantised weights, which cannot be trained", cure=UNQUANTISED
            )
        if name := not_finite(self._named_tensors()):
            raise ModelError(
                f"{self.source} is not finite: {name} holds a NaN or an infinity",
                cure="get the model again, or give another --model",
            )
        with quiet(), system_errors(), export.explained(self.source):
            notes = [export.mend_generation(inner)]
            saved = export.as_saved(inner, self._named_tensors())
            keep = self._kept(saved)
            size = sum(tensor.nbytes for tensor in saved.values())
            if keep is not None:
                notes.append(keep.note)
                size += keep.size
            elif self.origin is not None:
                notes.append(self._left_out(saved))
            export.check_room(folder, size)
            with tempfile.TemporaryDirectory(prefix=PARTIAL, dir=folder) as scratch:
                inner.save_pretrained(scratch, state_dict={})
                self.tokenizer.save_pretrained(scratch)
                if self.adapter is not None:
                    self.save_adapter(Path(scratch) / "adapter")
        return [note for note in (*notes, self._router_note()) if note]

    def _named_tensors(self) -> dict[str, Tensor]:
        """The tensors of the result by the network's names, adapters away."""
        if self.adapter is None:
            return self.network.inner.state_dict()
        return adapters.plain(self.network.inner)

    def _kept(self, saved: dict[str, Tensor]) -> export.Kept | None:
        """What of the model's own folder the result holds as well; None where there is no folder,
        or the result is of another kind.
        """
        if self.origin is None or self.network.inner.get_output_embeddings() is None:
            return None
        return export.kept(self.origin, self.network.inner, saved)

    def _left_out(self, saved: dict[str, Tensor]) -> str:
        """What of the model's own folder a result of another kind does not hold."""
        assert self.origin is not None
        rest = export.unread(self.network.inner, saved, self.origin)
        rest -= {f"{prefix}lm_head.weight" for prefix in export.PREFIXES}
        if not rest:
            return ""
        return (
            f"{self.origin} holds {len(rest):,} tensors that text does not touch "
            f"({export.named(rest)}); the result, a {type(self.network.inner).__name__}, is without"
        )

    def _router_note(self) -> str:
        """What is to be said of the load-balancing loss that the config of a mixture asks for."""
        inner, router = self.network.inner, self.network.router
        if router is not None:
            return (
                "the router's load-balancing loss is added to the loss, times "
                f"{router.coefficient:g}, and logged as router_loss"
            )
        if asked_router(inner) is None:
            return ""
        return (
            "config.json has output_router_logits, and the router's load-balancing loss is NOT "
            f"added: {type(inner).__name__} computes none, or another than the common one"
        )

    def save_adapter(self, folder: Path) -> None:
        """Write the adapter in peft's format with the digest of the model it belongs to.

        Raises:
            ModelError: it is not finite.
        """
        assert self.adapter is not None, "the policy has no adapter"
        self._check_finite(dict(self.adapter.named_parameters()))
        adapters.save_adapter(self.adapter, folder, self.source, self.digest)

    # ----------------------------------------------------------------------- how it is talked to

    @property
    def _generation(self) -> Any:
        """Where the model says what ends an answer: its generation config, or its config where it
        does not generate.
        """
        inner = self.network.inner
        return getattr(inner, "generation_config", None) or inner.config.get_text_config()

    @property
    def stops(self) -> tuple[int, ...]:
        """The tokens that end an answer: the tokenizer's end token, and those of the model's
        generation config.
        """
        known = self._generation.eos_token_id
        own = self.tokenizer.eos_token_id if self.tokenizer is not None else None
        every = (own, *(known if isinstance(known, list) else [known]))
        ends = [i for i in every if i is not None]
        if odd := [i for i in ends if not isinstance(i, int)]:
            raise ModelError(
                f"{self.source}: an end token is {odd[0]!r}, which is no token's number",
                cure="correct eos_token_id in generation_config.json or config.json",
            )
        return tuple(dict.fromkeys(ends))

    def set_chat(self, template: str | dict[str, str], stop: str) -> None:
        """Say how the model is talked to, so that it is saved with it.

        Args:
            template: Jinja chat template.
            stop: the token that ends an answer; generation stops there, besides where it did
                before.
        """
        self.tokenizer.chat_template = template
        stop_id = self.tokenizer.convert_tokens_to_ids(stop)
        stops = list(dict.fromkeys([*self.stops, stop_id]))
        self._generation.eos_token_id = stops if len(stops) > 1 else stops[0]


def _warn(sentence: str) -> None:
    warnings.warn(sentence, stacklevel=3)


def _nothing(columns: Columns) -> Tensor:
    """A zero that depends on everything that was read."""
    read = [v for v in vars(columns).values() if isinstance(v, Tensor) and v.requires_grad]
    return torch.stack([value.sum() * 0 for value in read]).sum()


def _names(values: list[dict[str, Tensor]]) -> list[str]:
    return list(values[0]) if values else []
