"""Spaces of several models, or versions of one, side by side."""
