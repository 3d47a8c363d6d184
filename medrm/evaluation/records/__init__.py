"""What an evaluation folder holds line by line: responses, verdicts, cases."""
