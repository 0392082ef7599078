"""`python -m bagel`, the same as `bagel`."""

from bagel_mot.cli import main

main()
