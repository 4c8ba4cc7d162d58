"""Evaluation: items, what a model makes of each, and what can be said of all of them with an
interval.
"""
