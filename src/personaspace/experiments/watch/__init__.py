"""A model and its variants (checkpoints, adapters, quantisations), on the same prompts: what of the default has moved."""
