"""Serving: a model answers people."""
