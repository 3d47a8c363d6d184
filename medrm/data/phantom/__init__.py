"""The phantom set: synthetic CT- and MR-like cases whose truth, and so whose ceiling, is known."""

from medrm.data.phantom.layouts import write_phantom

__all__ = ["write_phantom"]
