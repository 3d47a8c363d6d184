"""Generative judges: rows, targets, rewards, and TRL's trainers."""
