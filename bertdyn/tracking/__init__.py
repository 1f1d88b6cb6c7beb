"""The only part that talks to MLflow."""
