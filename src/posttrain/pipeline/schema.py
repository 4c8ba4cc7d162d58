"""The JSON schema of recipes, for editors: made from the settings of the stages."""

from __future__ import annotations

from typing import Any

from posttrain.core.settings import Leaf, ReadsRows, options
from posttrain.pipeline.recipe import NAME
from posttrain.stages.index import entries
from posttrain.stages.registry import find


def schema() -> dict[str, Any]:
    """JSON schema of recipes."""
    kinds = {name: _kind(name) for name in entries()}
    own = {
        "title": "a stage of your own",
        "type": "object",
        "properties": {
            "stage": {
                "type": "string",
                "pattern": ":",
                "description": "FILE.py:NAME or package.module:NAME",
            }
        },
        "required": ["stage"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "posttrain recipe",
        "type": "object",
        "additionalProperties": False,
        "required": ["stages"],
        "properties": {
            "name": {
                "type": "string",
                "pattern": f"^{NAME.pattern}$",
                "description": (
                    "the run's folder is runs/NAME; unset: the file's name without its ending"
                ),
            },
            "stages": {
                "type": "object",
                "minProperties": 1,
                "description": "name → stage, in an order in which they can run",
                "properties": kinds,
                "additionalProperties": {"anyOf": [*kinds.values(), own]},
            },
        },
    }


def _kind(name: str) -> dict[str, Any]:
    """The schema of one kind of stage."""
    properties: dict[str, Any] = {"stage": {"const": name}}
    required: list[str] = []
    for leaf in options(find(name).settings).values():
        properties[leaf.name] = _property(leaf)
        if leaf.field.is_required() and not leaf.switch:
            required.append(leaf.name)
    return {
        "title": name,
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _property(leaf: Leaf) -> dict[str, Any]:
    """The schema of one option; a list of files may be one file, and a file is text or its
    parts.
    """
    field = leaf.field
    if leaf.switch:
        value: dict[str, Any] = {"type": "boolean"}
    elif leaf.has(ReadsRows):
        source = {"type": ["string", "object"]}
        value = {"anyOf": [source, {"type": "array", "items": source}]}
    else:
        value = leaf.adapter.json_schema()
        if "items" in value:
            value = {"anyOf": [value, value["items"]]}
    unset = (
        leaf.switch
        or field.is_required()
        or field.get_default(call_default_factory=True) in (None, "", (), {})
    )
    default = {} if unset else {"default": field.get_default(call_default_factory=True)}
    return {**value, **default, "description": field.description or ""}
