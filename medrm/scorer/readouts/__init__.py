"""One module for each way of reading a model."""
