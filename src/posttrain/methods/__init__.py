"""Methods are arithmetic: pure functions of tensors.

This floor imports torch and `core`, nothing else.
"""
