"""Choosing rows: by relevance to a target and by quality, without near-duplicates, and splits that
do not leak.
"""
