"""Whether the axis is there before post-training (the paper's section on base models)."""
