"""The parts of the HTML pages: frame, tables, drawn rows, the browser of cases."""
