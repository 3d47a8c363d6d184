"""Runs made by hand: reports and a comparison with every number a figure or an export shows."""

from __future__ import annotations

from typing import Any

from medrm.evaluation.report import RunFiles

DIMENSIONS = (
    "accuracy",
    "relevance",
    "comprehensiveness",
    "creativity",
    "responsiveness",
    "overall",
)
ORGANS = tuple(f"organ {number}" for number in range(13))


def made_run(
    dimensions: tuple[str, ...] = DIMENSIONS,
    organs: tuple[str, ...] = ORGANS,
    *,
    scalar: bool = False,
) -> RunFiles:
    """A run of a judge, or of a reward model, with these dimensions and organs."""
    before, after = (made_report(dimensions, organs, shift, scalar) for shift in (0.0, 0.2))
    metrics = [
        {"step": step, "loss": 1 / step, f"accuracy_{dimensions[0]}": 0.5 + step / 100}
        for step in (10, 20, 30)
    ]
    metrics.append({"step": 30, "eval_loss": 0.1, f"eval_accuracy_{dimensions[0]}": 0.75})
    return RunFiles(before, after, made_comparison(dimensions, organs), metrics)


def made_report(
    dimensions: tuple[str, ...], organs: tuple[str, ...], shift: float, scalar: bool
) -> dict[str, Any]:
    """A report.json."""
    size = len(dimensions)
    phi = [[1.0 if a == b else 0.3 + shift for a in range(size)] for b in range(size)]
    return {
        "benchmark": {
            "name": "made",
            "revision": "r1",
            "digest": "d" * 64,
            "cases": 100,
            "clusters": 90,
            "synthetic": True,
        },
        "model": f"model {shift}",
        "readout": "reward" if scalar else "generate",
        "dimensions": list(dimensions),
        "parsing": None if scalar else made_parsing(shift),
        "verdict_mass": None,
        "settings": {"dtype": "float32"},
        "ceiling": dict.fromkeys(dimensions, 0.95),
        "not_scored": [],
        "unread": {},
        "structure": None
        if size < 2
        else {
            "dimensions": list(dimensions),
            "cases": 80,
            "all_same": 0.4 + shift,
            "all_same_label": 0.3,
            "halo": 0.1 + shift,
            "overall_vs_parts": 0.8,
            "overall_vs_parts_label": 0.7,
            "phi": phi,
            "phi_label": phi,
        },
        "length": {name: made_length(shift) for name in dimensions},
        "protocols": {
            "official": {
                "label": "official scorer",
                "micro": dict.fromkeys(dimensions, 0.5 + shift),
                "macro": dict.fromkeys(dimensions, 0.51 + shift),
                "organs": {organ: dict.fromkeys(dimensions, 0.52 + shift) for organ in organs},
            },
            "robust": {
                "dimensions": {name: made_measures(shift, scalar) for name in dimensions},
                "means": {
                    "mean": made_rate(0.6 + shift),
                    "joint": made_rate(0.3 + shift),
                    "macro": dict.fromkeys(dimensions, 0.61 + shift),
                },
                "groups": {
                    "organ": {organ: dict.fromkeys(dimensions, made_rate(0.6)) for organ in organs}
                },
            },
        },
        "baselines": {"always_a": dict.fromkeys(dimensions, 0.52)},
        "published": [],
    }


def made_rate(accuracy: float) -> dict[str, Any]:
    return {
        "accuracy": accuracy,
        "ci95": [accuracy - 0.05, accuracy + 0.05],
        "n": 90,
        "clusters": 80,
    }


def made_parsing(shift: float) -> dict[str, Any]:
    """All replies are read after training, a part before."""
    unread = 0 if shift else 40
    stages = {"json": 200 - unread} | ({"none": unread} if unread else {})
    found = {"stages": stages, "suspect": 0, "unread": {"cut off": unread} if unread else {}}
    return {
        "calls": 200,
        "states": {"ok": 200},
        "finish_reasons": {"stop": 200},
        "strict": found,
        "official": {**found, "voided_but_readable": 3},
    }


def made_length(shift: float) -> dict[str, Any]:
    return {
        "n": 70,
        "longer_rate": 0.7 - shift,
        "longer_rate_label": 0.55,
        "bias": 0.15 - shift,
        "accuracy_longer": 0.8,
        "accuracy_shorter": 0.4,
        "coefficient": 0.5,
        "ci95": [0.1, 0.9],
    }


def made_measures(shift: float, scalar: bool) -> dict[str, Any]:
    """The measures of one dimension."""
    place: dict[str, Any] = dict.fromkeys(
        ("consistency", "first_rate", "both_correct", "net_correct", "position_gap", "flips")
    )
    if not scalar:
        place = {
            "consistency": 0.7 + shift,
            "first_rate": 0.6,
            "both_correct": 0.5 + shift,
            "net_correct": 0.55 + shift,
            "position_gap": 0.2 - shift,
            "flips": {"first_twice": 9, "second_twice": 3, "skew": -0.5, "p": 0.15},
        }
    bins = [
        {"confidence": 0.55 + 0.1 * k, "accuracy": 0.5 + 0.1 * k, "n": 18, "low": 0.4, "high": 0.9}
        for k in range(5)
    ]
    return {
        **made_rate(0.6 + shift),
        "n_tie": 4,
        "tie_accuracy": None,
        "coverage": 0.8 + shift,
        "parsed_accuracy": 0.75,
        "bounds": [0.6 + shift, 0.8],
        **place,
        "kappa": 0.2 + shift,
        "ac1": 0.25 + shift,
        "balanced_accuracy": 0.6 + shift,
        "design_effect": 1.1,
        "largest_cluster": 3,
        "calibration": {
            "n": 90,
            "ece": 0.05,
            "ece_debiased": 0.04,
            "brier": 0.2,
            "nll": 0.5,
            "auroc": 0.7,
            "accuracy_at_80": 0.85,
            "bins": bins,
            "risk_coverage": [[0.2, 0.0], [0.6, 0.1], [1.0, 0.2]],
        },
    }


def made_comparison(dimensions: tuple[str, ...], organs: tuple[str, ...]) -> dict[str, Any]:
    """A comparison.json; the first dimension improved, p of the others is above 0.05."""
    entries = {
        name: {
            "dimension": name,
            "before": 0.6,
            "after": 0.8,
            "delta": 0.2,
            "ci95": [0.1, 0.3],
            "p": 0.001 if name == dimensions[0] else 0.3,
            "p_unadjusted": 0.001,
            "p_mcnemar": 0.002,
            "p_holm": 0.006,
            "ci95_bootstrap": [0.11, 0.29],
            "n": 90,
            "clusters": 80,
            "ceiling": 0.95,
            "both_right": 50,
            "fixed": 22,
            "broken": 4,
            "both_wrong": 14,
        }
        for name in dimensions
    }
    cells = [
        {
            "member": organ,
            "dimension": name,
            "n": 40 + 2 * number,
            "clusters": 40,
            "before": 0.6,
            "after": 0.7,
            "delta": 0.1,
            "ci95": [0.0, 0.2],
            "p": 0.04,
            "p_bh": 0.01 if number == 0 else 0.2,
        }
        for number, organ in enumerate(organs)
        for name in dimensions
    ]
    return {
        "comparable": True,
        "verdict": "Improved",
        "headline": "Improved.",
        "benchmark": {"name": "made", "cases": 100, "clusters": 90},
        "primary": dict(entries[dimensions[0]]),
        "dimensions": entries,
        "mean": {"before": 0.6, "after": 0.8, "delta": 0.2, "ci95": [0.12, 0.28]},
        "official": {name: {"before": 0.5, "after": 0.7, "delta": 0.2} for name in dimensions},
        "cells": {"organ": cells} if organs else {},
        "controls": {},
        "guardrails": {},
    }
