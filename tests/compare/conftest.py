"""The fixtures of comparisons."""

from support.comparison import comparison, encoder_folder, model_folder, recipe, views
from support.fake_cells import script

__all__ = ["comparison", "encoder_folder", "model_folder", "recipe", "script", "views"]
