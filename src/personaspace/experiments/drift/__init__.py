"""How far conversations drift, and which messages move them (the paper's sections on drift and its causes)."""
