"""Who the model says it is while it is steered along the axis or capped (the paper's section on steering)."""
