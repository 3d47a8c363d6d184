"""Many models on one benchmark: which can be told apart, as tables and a page."""
