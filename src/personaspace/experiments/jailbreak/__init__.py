"""Whether a persona gets the model to do what it should not (the paper's section on jailbreaks)."""
