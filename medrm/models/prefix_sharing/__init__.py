"""What answers of a case share is computed once: batch, attention, cached prefix."""
