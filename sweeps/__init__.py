"""Optuna studies as commands, and what their trials choose from."""
