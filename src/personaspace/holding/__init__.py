"""Watching a model and holding it: where replies lie, floors for caps, and what caps cost."""
