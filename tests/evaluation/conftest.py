"""The fixtures of runs of classification."""

from support.classification_runs import finished, mnli, models, train

__all__ = ["finished", "mnli", "models", "train"]
