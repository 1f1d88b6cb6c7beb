"""A checkpoint name or folder in, a ready model out, and the anatomy of each family."""
