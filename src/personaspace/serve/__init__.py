"""Serves a model with its space behind an OpenAI-compatible API, and the page to try it on; talks to the network."""

from personaspace.serve.app import create_app
from personaspace.serve.server import run
from personaspace.serve.settings import Settings, hash_key, read_keys

__all__ = ["Settings", "create_app", "hash_key", "read_keys", "run"]
