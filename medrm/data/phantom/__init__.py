"""The phantom set: synthetic CT- and MR-like cases whose truth, and so whose ceiling, is known."""
