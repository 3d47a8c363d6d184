"""The one inference path: cases in, scores and verdicts out."""
