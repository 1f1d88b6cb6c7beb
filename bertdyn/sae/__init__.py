"""Sparse dictionaries of an encoder's features: training, measures, what one can read in them."""
