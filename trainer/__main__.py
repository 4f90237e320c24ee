"""``python -m trainer``: the command line, as ``torchrun -m trainer run`` needs it."""

from trainer.cli import main

main()
