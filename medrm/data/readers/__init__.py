"""One module for each form of annotation."""
