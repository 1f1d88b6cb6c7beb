"""What a task is: its loss, its evaluation and its metrics."""
