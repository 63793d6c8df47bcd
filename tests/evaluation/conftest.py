"""The fixtures of runs of classification."""

from support.classification_runs import mnli, models, train

__all__ = ["mnli", "models", "train"]
