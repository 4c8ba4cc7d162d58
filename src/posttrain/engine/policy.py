"""The policy: a language model, its tokenizer, and five verbs. Every method is a short program over
them.

    score(forests, read)                columns, no gradients
    forward_backward(forests, loss)     adds to the gradients; `measure` is the same without
    step(factor)                        one optimiser update
    sample(prompts, params)             completions; `stream` gives each as it ends
    save(folder) / load(path)           a Hugging Face folder

There is one copy of the weights: training and sampling read the same parameters. On a CPU they are
float32; on a GPU bfloat16, and the float32 master belongs to the optimiser.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from collections.abc import Sequence as Many
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from posttrain.core.errors import ConfigError, ModelError
from posttrain.core.types import Read
from posttrain.data.forest import TokenForest
from posttrain.data.prompting import Prompting
from posttrain.engine import lora as adapters
from posttrain.engine import sampler, sampling_exact, sampling_probe
from posttrain.engine.admission import admitted
from posttrain.engine.export import VALUE_HEAD
from posttrain.engine.learner import Learner
from posttrain.engine.load import (
    architecture,
    check_tokenizer,
    default_dtype,
    device_of,
    digest,
    load_network,
    load_tokenizer,
    resolve,
)
from posttrain.engine.settings import LoraSettings

LogProbs = Callable[[Many[TokenForest]], list[Tensor]]  # forests → log-probabilities [N] of each


class Policy(Learner):
    """A language model that can be scored, trained, sampled and saved; see `Learner`."""

    _told_ends = False

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "",
        dtype: str = "",
        lora: LoraSettings | None = None,
        seed: int = 0,
    ) -> Policy:
        """Load a Hugging Face folder or hub id and admit it.

        Args:
            path: local folder or hub id. Weights that its config says are quantised stay so.
            device: cpu or cuda; the GPU where there is one if empty.
            dtype: float32, bfloat16 or float16; float32 on a CPU and bfloat16 on a GPU if empty.
            lora: add adapters; only they are trained.
            seed: of the adapters' first weights.
        Raises:
            ModelError: it cannot be loaded, or the probe refused it.
        """
        folder, device = resolve(str(path)), device_of(device)
        kind = architecture(folder)
        if kind.endswith(("ForSequenceClassification", "ForTokenClassification")):
            raise ModelError(
                f"{path} is a {kind}, a reward model or classifier, and writes no text",
                cure="give the language model that it was made from; posttrain judge puts a reward "
                "model on trial",
            )
        tokenizer = load_tokenizer(folder)
        inner, notes = load_network(folder, device, default_dtype(device, dtype))
        network = admitted(inner, notes)
        check_tokenizer(path, tokenizer, network.vocabulary)
        if (folder / VALUE_HEAD).is_file():
            network.add_value_head()
            assert network.value_head is not None
            try:
                network.value_head.load_state_dict(load_file(folder / VALUE_HEAD))
            except (OSError, SafetensorError, RuntimeError) as error:
                raise ModelError(
                    f"cannot load {folder / VALUE_HEAD}: {str(error).splitlines()[0]}",
                    cure="get the complete model, or delete the file: a new head is made",
                ) from error
        adapter = adapters.attach(inner, lora, seed) if lora else None
        return cls(
            network,
            tokenizer,
            source=str(path),
            digest=digest(folder),
            origin=folder,
            adapter=adapter,
            prompting=Prompting.read(folder),
        )

    def add_value_head(self, seed: int = 0) -> None:
        """A head for `Read(value=True)`, where there is none yet; see `Network.add_value_head`.

        Raises:
            ConfigError: there is an optimiser, which would not move it.
        """
        if self.optimiser is not None and self.network.value_head is None:
            raise ConfigError(
                "the optimiser does not know of a value head that is added now",
                cure="call add_value_head() before train_with()",
            )
        self.network.add_value_head(seed)

    def logprobs(self, forests: Many[TokenForest], read: Read | None = None) -> list[Tensor]:
        """[N] log-probabilities of each forest's targets, without gradients.

        Args:
            read: of which distribution: temperature and truncation; None: the model's own.
        """
        return [columns.logprob for columns in self.score(forests, read)]

    def reference(self, source: str = "", read: Read | None = None) -> LogProbs:
        """The policy as it stands, kept as what training is held against.

        Args:
            source: `adapters`, the network without its adapters, which is exact and free; `copy`, a
                frozen copy of the network; empty: adapters where there are any.
            read: see `logprobs`.
        Returns: forests → the log-probabilities [N] of each one's targets.
        """
        sources = ("", "adapters", "copy")
        if source not in sources or (source == "adapters" and self.adapter is None):
            raise ConfigError(
                f"there is no reference {source!r}", cure="adapters (with --lora) or copy"
            )
        if self.adapter is not None and source != "copy":

            def without_adapters(forests: Many[TokenForest]) -> list[Tensor]:
                with self.adapter.disable_adapter():
                    return self.logprobs(forests, read)

            return without_adapters
        frozen = copy.deepcopy(self.network).requires_grad_(False)
        kept = Policy(frozen, self.tokenizer, source=self.source, digest=self.digest)
        return partial(kept.logprobs, read=read)

    def sample(
        self,
        prompts: Many[Many[int]],
        params: sampler.Sampling,
        seeds: Many[int] | None = None,
        progress: sampler.TokenProgress | None = None,
    ) -> list[sampler.Completion]:
        """Draw completions, ended by the model's end tokens where `params` names none, and by its
        last position; see `posttrain.engine.sampler.sample`.

        Raises:
            ModelError: the model cannot be sampled.
        """
        params = self._ending(params)
        self._ready_to_sample()
        completions = sampler.sample(self.network, prompts, params, progress, seeds)
        limit = self.longest
        if limit is not None and any(len(p) + params.max_tokens > limit for p in prompts):
            self._tell_ends(prompts, completions, params.max_tokens, limit)
        return completions

    def stream(
        self, requests: Iterable[sampler.Request], progress: sampler.TokenProgress | None = None
    ) -> Iterator[sampler.Completion]:
        """Completions of requests, each as it ends; see `posttrain.engine.sampler.stream`.

        Raises:
            ModelError: the model cannot be sampled, or its weights have changed since the first
                token.
        """
        self._ready_to_sample()
        ending = cache(self._ending)  # requests that share their parameters share them still
        settled = (replace(request, params=ending(request.params)) for request in requests)
        return sampler.stream(self.network, settled, progress)

    def _ending(self, params: sampler.Sampling) -> sampler.Sampling:
        """The same parameters, with what ends a completion."""
        if params.stop is None and (stops := self.stops):
            params = replace(params, stop=stops)
        return sampler.stopping_at_texts(params, self.tokenizer) if params.stop_texts else params

    def _ready_to_sample(self) -> None:
        if self.network.decoding is None:
            for reason in self.admit_sampling():
                self.tell(reason)

    def use_exact(self) -> str:
        """Sample with the very log-probabilities that training reads, to the bit, from now on; see
        `posttrain.engine.exact`.

        Returns: why that is not possible; empty where it is.
        """
        self._ready_to_sample()
        return sampling_exact.why_not(self.network)

    def admit_sampling(self) -> tuple[str, ...]:
        """Probe how completions may be drawn; `sample` does it where nobody did before.

        Returns: what the user should know of it, one sentence each.
        Raises:
            ModelError: the model cannot be sampled.
        """
        self.network.decoding = sampling_probe.decoding(self.network)
        return self.network.decoding.reasons

    def _tell_ends(
        self,
        prompts: Many[Many[int]],
        completions: Many[sampler.Completion],
        max_tokens: int,
        limit: int,
    ) -> None:
        """Say, once, that completions ended at the model's last position."""
        short = [c for c in completions if not c.finished and len(c.tokens) < max_tokens]
        if not short or self._told_ends:
            return
        self._told_ends = True
        full = sum(len(prompts[c.prompt]) >= limit for c in short)
        empty = f", {full:,} of them before the first token" if full else ""
        self.tell(
            f"the model knows {limit:,} positions: {len(short):,} of {len(completions):,} answers "
            f"reach the last one and end there unfinished{empty}"
        )
