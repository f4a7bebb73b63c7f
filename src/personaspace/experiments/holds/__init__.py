"""Ways of holding a model over conversations."""
