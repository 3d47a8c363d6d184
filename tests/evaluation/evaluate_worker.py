"""One process of `test_processes.py`: evaluates a mock judge into the folder that is named."""

import sys
from pathlib import Path

from accelerate import PartialState
from mock_scorers import Judge, make_benchmark, make_cases

from medrm.evaluation.evaluator import evaluate
from medrm.pipeline.stop_signals import end_process


def rule(case: object, order: str) -> float | None:
    """Unread in one case, right where the number of the case is even."""
    number = int(case.case_id[-3:])
    return None if number == 3 else 0.9 - 0.8 * (number % 2)


if __name__ == "__main__":
    state = PartialState(cpu=True)
    folder = Path(sys.argv[1])
    evaluate(Judge(rule), make_benchmark(make_cases("ABBAB")), folder, "mock")
    assert (folder / "report.json").is_file()  # no process leaves before the folder is written
    (folder.parent / f"processes-{state.num_processes}-{state.process_index}").touch()
    end_process(0)
