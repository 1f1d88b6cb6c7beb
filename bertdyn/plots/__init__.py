"""Every figure, from a table to a matplotlib Figure."""
