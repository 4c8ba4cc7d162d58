"""Scorers: what an answer is worth. The same function scores in training, evaluation and
red-teaming.
"""
