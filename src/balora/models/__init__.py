"""Models as they are loaded: their names, their output layers, their classification heads."""
