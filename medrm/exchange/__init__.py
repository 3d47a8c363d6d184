"""Annotation from other programs, and for them: importers, exporters, and what they share."""
