"""Statistics of paired, clustered verdicts; imports no torch.

Cases that share a patient, a study or an image are not independent, so intervals and tests work on
clusters. No result depends on the order of the cases, and all randomness is seeded.
"""
