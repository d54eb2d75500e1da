"""A simulator of the scheduling policy: cards, models and tasks in a world of its own, driven by what workers call."""
