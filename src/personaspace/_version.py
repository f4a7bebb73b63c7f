"""The version that is installed, as the package's metadata have it, which have it from the repository's tags."""

from importlib.metadata import version

__version__ = version("personaspace")
