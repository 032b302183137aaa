"""The package's version, which its metadata take from here: a copy that is not installed, as in a frozen program, has none."""

__version__ = "0.1.0"
