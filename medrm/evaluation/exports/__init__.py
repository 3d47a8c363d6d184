"""Files of a run or of one evaluation for other programs and for papers; imports no torch."""

from medrm.evaluation.exports.hub_entries import benchmark_results
from medrm.evaluation.exports.write_exports import write_exports

__all__ = ["benchmark_results", "write_exports"]
