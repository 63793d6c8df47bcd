"""From a data set on the hub or on disk to rows of prompt and completion, or of chat turns."""

from balora.data.examples import Examples, load_examples
from balora.data.templates import ALPACA, PromptTemplate

__all__ = ["ALPACA", "Examples", "PromptTemplate", "load_examples"]
