"""The package's version, on the ground floor so that every floor may record it."""

__version__ = "0.1.0"
