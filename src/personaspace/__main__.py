"""`python -m personaspace` is the command `personaspace`."""

from personaspace.cli import main

main()
