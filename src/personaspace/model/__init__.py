"""Inside one network: how it is loaded, where its residual stream runs, and what can be done to it."""
