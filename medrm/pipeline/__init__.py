"""The whole job: data, before, training, after, comparison, report."""
