"""The ground floor: errors, seeds, files, optional imports, shared types.

Imports nothing else of posttrain.
"""
