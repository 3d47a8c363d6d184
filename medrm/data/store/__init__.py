"""A set on disk: its cases, columns and facts of its images."""
