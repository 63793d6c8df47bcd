"""``python -m balora``, and so ``accelerate launch -m balora train ...``."""

from balora.cli import entry_point

entry_point()
