"""One recipe trained with several seeds: what it gains over seeds and cases; imports no torch."""
