"""Activation-driven structured pruning: statistics → scores → plan → surgery → cost."""
