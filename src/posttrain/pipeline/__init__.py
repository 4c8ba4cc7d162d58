"""Pipelines: a recipe of stages becomes artifacts that are made once."""
