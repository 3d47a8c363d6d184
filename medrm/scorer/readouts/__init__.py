"""One module for each way of reading a model; `medrm.readouts` registers them."""
