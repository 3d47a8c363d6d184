"""Two evaluations in pairs: what differs, what got better, what must not get worse."""
