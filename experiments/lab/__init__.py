"""The bench that every question shares: runs, result files, processes, statistics."""
