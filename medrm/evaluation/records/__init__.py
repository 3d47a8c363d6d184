"""What an evaluation folder holds line by line: verdicts, readings, replies, cases."""
