"""Optuna studies: search spaces, storage, workers, and what comes out. Knows nothing of models or MLflow."""
