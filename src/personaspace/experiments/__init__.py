"""The study's experiments, a folder each, over the engine, the monitor and the caps that are there."""
