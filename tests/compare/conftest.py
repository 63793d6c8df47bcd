"""The fixtures of comparisons."""

from support.comparison import comparison, encoder_folder, model_folder, recipe, views

__all__ = ["comparison", "encoder_folder", "model_folder", "recipe", "views"]
