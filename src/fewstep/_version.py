"""The version of this package, which all records carry."""

__version__ = "0.2.0"
