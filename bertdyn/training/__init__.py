"""The one loop that trains everything here; freezing, dynamics, checkpoints are listeners around it."""
