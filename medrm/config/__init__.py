"""What one run is told: groups of options, the strict parser, command lines; no torch."""
