"""The decisions: the task as a fold over its events, and what may happen to it next."""
