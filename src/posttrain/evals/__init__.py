"""Evaluation: tasks ask a model, records hold what became of each item, and metrics say what the
records come to, with intervals.
"""
