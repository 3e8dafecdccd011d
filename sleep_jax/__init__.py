"""A language model that lives: it learns awake, and consolidates and remembers asleep."""

__version__ = "0.1.0"
