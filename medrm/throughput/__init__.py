"""`medrm throughput`: how fast a model trains and scores with shared prefixes, and without."""
