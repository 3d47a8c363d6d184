"""Publishing a saved model: its card, what leaves the machine, and one commit that loads back."""
