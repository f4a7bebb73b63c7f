"""Which personality traits the axis carries (the paper's section on traits)."""
