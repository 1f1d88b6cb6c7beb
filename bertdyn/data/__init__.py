"""Texts in, batches of token ids out. Knows nothing of models."""
