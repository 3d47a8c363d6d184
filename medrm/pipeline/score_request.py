"""What one `medrm score` is asked to do, as its options; imports no torch."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path

from medrm.config.option import as_in, option
from medrm.config.options import EvaluationOptions
from medrm.data.readers.unlabelled import STANDARD_INPUT, input_files
from medrm.errors import ConfigError, applying, refuse
from medrm.files import check_outputs, is_stream
from medrm.models.model_name import check_model_name
from medrm.pipeline.requests import EvalRequest
from medrm.scorer.mock_judges import PREFIX

_FORMS = (".jsonl", ".parquet")
"""What an output can be, by its name."""


@dataclass(frozen=True)
class ScoreRequest:
    """What one `medrm score` is asked to do."""

    model: str = option(MISSING, "reward model: adapter folder or hub repo")
    input: str = option(
        MISSING,
        "rows to score: a .jsonl, .json or .parquet file, a folder of them, or - for JSON lines "
        "from the standard input; columns question (or prompt), answers (or responses, "
        "completions, answer_a and answer_b, ...), images",
    )
    output: str = option(
        MISSING,
        "file to write, .jsonl or .parquet, or - for the standard output; a part of the same rows "
        "that is there is continued",
    )
    revision: str | None = as_in(EvalRequest, "revision")
    base: str | None = as_in(EvalRequest, "base")
    readout: str | None = option(
        None, "how the model is read (default: as it was saved)", ("reward", "implicit_reward")
    )
    best_of_n: bool = option(False, "also write the best answer and its index")
    dimension: str | None = option(
        None, "by which the best answer is chosen (default: overall, or the only one)"
    )
    normalise: bool = option(
        False,
        "also write z-scores and win probabilities, by mean, spread and temperature of the "
        "development cases of the training",
    )
    image_root: Path | None = option(
        None,
        "folder that paths of images are relative to and stay in (default: that of the input)",
    )
    image_conversion: str | None = as_in(EvalRequest, "image_conversion")
    evaluation_batch_rows: int = as_in(EvaluationOptions, "evaluation_batch_rows")
    deterministic: bool = as_in(EvaluationOptions, "deterministic")
    overwrite_output: bool = option(False, "replace another output instead of refusing to start")

    def __post_init__(self) -> None:
        """Refuses what is wrong without a look at the model.

        Raises:
            ConfigError: an option is.
            DataError: there is no such input.
        """
        problems = {
            f"--evaluation_batch_rows is {self.evaluation_batch_rows}; give 1 or more.": (
                self.evaluation_batch_rows < 1
            ),
            "--dimension says by which the best answer is chosen: give --best_of_n.": (
                self.dimension is not None and not self.best_of_n
            ),
        }
        refuse(applying(problems))
        input_files(self.input)
        if self.output != STANDARD_INPUT:
            check_outputs({"--output": self.output}, folders=False)
            self._check_apart()
        if not self.model.startswith(PREFIX):
            check_model_name(self.model)

    def _check_apart(self) -> None:
        """Refuses an output that another start would read as rows.

        Raises:
            ConfigError: it lies in the folder that is read, or is the file that is read; or it is
                of no known form.
        """
        output = Path(self.output)
        if not is_stream(output) and output.suffix not in _FORMS:
            raise ConfigError(
                f"--output {self.output} is of no known form; accepted are {', '.join(_FORMS)}, "
                "and -."
            )
        source, place = Path(self.input).resolve(), output.resolve()
        if place == source or (source.is_dir() and place.parent == source):
            raise ConfigError(
                f"--output {self.output} lies where the rows are read from; give another place."
            )
