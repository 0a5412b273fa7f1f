"""From scores to decisions, metrics and their intervals: NumPy in, numbers out, no files."""
