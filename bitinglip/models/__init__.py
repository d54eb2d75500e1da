"""The weights: references, the local store, the registry."""
