"""Every table that medrm shows is built here once and written for each form; imports no torch."""
