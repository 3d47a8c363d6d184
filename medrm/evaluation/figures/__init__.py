"""Figures of a run or of one evaluation, for the page and as files; imports no torch."""

from medrm.evaluation.figures.runs import inline_figures, write_plots

__all__ = ["inline_figures", "write_plots"]
