"""Stages: each turns artifacts into one artifact.

A stage's settings stand beside the code that reads them.
"""
