"""Words that options of dictionaries are made of."""

ACTIVATIONS = ("topk", "batch_topk", "relu")
COMPARISONS = ("shared", "stagewise", "independent")
