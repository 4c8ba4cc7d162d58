"""Methods are arithmetic: pure functions of tensors.

This floor imports torch, numpy and `core`, nothing else.
"""
