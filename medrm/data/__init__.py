"""From sources to cases: readers, labels, clusters, splits and leak checks; imports no torch."""
