"""A synthetic world whose truth is known: texts, a task, and the tiny model pre-trained on them."""
