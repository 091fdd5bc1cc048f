"""The version of hibana. Here and not in the package itself, which imports the modules that read it."""

__version__ = "0.2.0"
