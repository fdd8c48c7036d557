"""`python -m app.cli` is the command `specnorm`."""

from app.cli import main

main()
