"""Recipes: one YAML file for a run, checked as a whole before anything is built."""

from balora.recipes.arguments import training_arguments
from balora.recipes.kinds import CLASSIFICATION, GENERATION
from balora.recipes.load import known_fields, load_recipe
from balora.recipes.recipe import Recipe

__all__ = [
    "CLASSIFICATION",
    "GENERATION",
    "Recipe",
    "known_fields",
    "load_recipe",
    "training_arguments",
]
