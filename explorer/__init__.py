"""What runs found, in the browser: reads any MLflow tracking server, and writes nothing there."""
