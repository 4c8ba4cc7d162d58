"""Settings of a conversation. No torch here, so that help and validation are instant."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from posttrain.core.settings import Settings
from posttrain.data.settings import PromptingSettings


class ChatSettings(Settings):
    """Which models are talked to, and how they answer."""

    model: str = Field(description="folder of a run or a model, or hub id")
    vs: str | None = Field(
        None, description="another model, which answers the same questions beside it"
    )
    prompt: str | None = Field(None, min_length=1, description="ask this one question and end")
    temperature: float = Field(
        0.7, ge=0, description="the logits are divided by it; 0 takes the most likely token"
    )
    top_p: float = Field(
        1.0,
        ge=0,
        le=1,
        description="draw from the most likely tokens that together have this probability",
    )
    top_k: int = Field(0, ge=0, description="draw from this many most likely tokens; 0 is all")
    max_tokens: int = Field(512, ge=1, description="tokens of an answer at most")
    seed: int = Field(0, ge=0, description="of the draws")
    device: Literal["", "cpu", "cuda"] = Field("", description="unset: the GPU where there is one")
    prompting: PromptingSettings = PromptingSettings()  # type: ignore[call-arg]
