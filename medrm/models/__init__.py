"""Base models of eleven families, the reward model made of them, and the adapter folder."""
