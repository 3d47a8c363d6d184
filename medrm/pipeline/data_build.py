"""`medrm data build`: cases that are made of other data, and marked as derived."""

from __future__ import annotations

from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, Literal

from medrm.config.option import as_in, option
from medrm.exchange.open_source import open_source
from medrm.exchange.vqa_pairs import DERIVED, RULE_NAMES, VqaSettings, vqa_importer
from medrm.exchange.write_votes import write_votes
from medrm.files import check_outputs
from medrm.pipeline.data_import import ImportRequest, print_summary


@dataclass(frozen=True)
class BuildRequest:
    """What one `medrm data build` is asked to do.

    Attributes:
        file: to build from.
    """

    file: str
    output: Path = option(MISSING, "folder to write; it appears complete or not at all")
    from_: Literal["vqa"] = option(
        MISSING, "what the file holds; vqa: questions with one reference answer each"
    )
    question_column: str | None = option(None, "column of the question (default: by its name)")
    answer_column: str | None = option(None, "column of the reference answer (likewise)")
    image_column: str | None = option(None, "column of the image (likewise)")
    id_column: str | None = option(None, "column of the question's id (likewise)")
    without_images: bool = option(False, "the questions are about no images")
    rules: list[str] = option(
        list(RULE_NAMES),
        "how a wrong answer is made of the right one; the first that makes one counts",
        RULE_NAMES,
    )
    seed: int = option(0, "same seed and same file, same pairs")
    sheet: str | None = as_in(ImportRequest, "sheet")
    image_root: Path | None = as_in(ImportRequest, "image_root")
    image_conversion: str | None = as_in(ImportRequest, "image_conversion")
    overwrite_output_dir: bool = option(
        False, "replace what an earlier build has left in output instead of refusing to start"
    )


def build_cases(request: BuildRequest) -> dict[str, Any]:
    """Builds cases from a file and returns the report, which is also written and shown in short.

    Raises:
        DataError: the file cannot be read, or nothing can be made of it.
        ConfigError: a column or the output is not accepted.
    """
    check_outputs({"--output": request.output})
    sought = ("question", "answer", "image", "id")
    columns = {name: getattr(request, f"{name}_column") for name in sought}
    rules = list(dict.fromkeys(request.rules))
    settings = VqaSettings(columns, request.without_images, rules, request.seed)
    path, root, conversion = Path(request.file), request.image_root, request.image_conversion
    opened = open_source(path, root, image_conversion=conversion, sheet=request.sheet)
    importer, overwrite = vqa_importer(settings), request.overwrite_output_dir
    summary = write_votes(request.output, opened, importer, overwrite=overwrite)
    pairs = {name: summary["annotators"].get(f"{DERIVED}{name}", 0) for name in rules}
    told = f"pairs by rule: {', '.join(f'{name} {count}' for name, count in pairs.items())}"
    print_summary(summary | {"notes": [told, *summary["notes"]]}, request.output)
    return summary
