"""Pure functions from activations to numbers."""
