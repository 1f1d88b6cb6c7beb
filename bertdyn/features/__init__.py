"""Activations on disk: the store, and extraction into it."""
