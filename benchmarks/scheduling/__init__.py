"""A simulator of the scheduling policy: 1 to 1,000 cards, driven by the very function that workers call."""
