"""The map of a model: who is asked what, sums of what was read, and the space that is estimated from them."""
