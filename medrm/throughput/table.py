"""The terminal table of `medrm throughput`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from medrm.errors import printable

_MIB = 2**20


def print_rows(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Prints the rows of a throughput.json."""
    console = console or Console()
    shape = report["shape"]
    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in ("task", "K", "variant"):
        table.add_column(name, no_wrap=True)
    for name in ("cases/s", "ratio", "spread", "ideal", "bound", "MiB"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in report["rows"]:
        ratio = row["ratio_to_separate"]
        table.add_row(
            row["task"],
            str(row["answers"]),
            row["variant"],
            f"{row['cases_per_s']:.3g}",
            f"{ratio['median']:.2f}",
            f"{ratio['min']:.2f}-{ratio['max']:.2f}",
            f"{row['ideal_ratio']:.2f}",
            f"{row['share_of_bound']:.0%}",
            f"{row['peak_memory_bytes'] / _MIB:,.0f}",
        )
    console.print(
        f"{printable(shape['name'])}: decoder of {shape['decoder_parameters'] / 1e6:,.1f} M "
        f"parameters, {shape['prefix_tokens']} shared tokens and {shape['answer_tokens']} of each "
        f"answer; {report['device']}, {report['dtype']}, {report['threads']} threads.",
        highlight=False,
    )
    console.print(table)
    console.print(
        "ratio: to separate rows, round by round. ideal: if time went by tokens alone.\n"
        "bound: how much a step reaches of the device's rate in bare matrix products.\n"
        "MiB: most bytes of tensors at once, the model included.",
        highlight=False,
    )
    if not report["complete"]:
        console.print("Not all was measured.")
    padded = max(row["padded_share"] for row in report["rows"])
    if padded > 0:
        console.print(f"Up to {padded:.1%} of the separate rows is padding.", highlight=False)
