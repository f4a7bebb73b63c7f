"""The study's experiments, one file each, over the engine, the monitor and the caps that are there."""
