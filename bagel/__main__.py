"""`python -m bagel`, the same as `bagel`."""

from bagel.cli import main

main()
