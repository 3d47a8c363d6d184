"""Writes the golden files of this version: `python tests/golden/make.py tests/golden/VERSION`.

Two adapters, each a few steps of training on phantom cases; an evaluation of each and of the base
on `cases/`; a comparison. Once written they stay: later versions must read them, as
`test_golden_versions.py` says.

Those in `0.3/` are not of a release: they were written on the way from 0.2.0 to 0.3, by code that
took its version from an older install beside it, so that their `medrm.json` name 0.1.0. Since then
files name the version of the code that wrote them (`medrm/version.py`), and here it must be the
folder's.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from medrm.version import __version__

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

TRAINED = {
    "reward": ["--objective", "bradley_terry", "--global_batch_cases", "8"],
    "judge": ["--objective", "judge_sft", "--judge_readout", "skeleton"],
}
EVALUATED = {
    "base_likelihood": ["--model", "phantom-base", "--readout", "likelihood"],
    "reward": ["--model", "reward_adapter"],
    "judge": ["--model", "judge_adapter"],
}
KEPT = ("cases.jsonl", "evaluation.json", "official.csv", "report.json", "responses.jsonl")


def medrm(*words: str, folder: Path) -> None:
    subprocess.run([sys.executable, "-m", "medrm", *words], check=True, cwd=folder)


def make(target: Path) -> None:
    if target.name != __version__:
        sys.exit(f"This is version {__version__}: its files belong into {HERE / __version__}.")
    target.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        medrm("data", "phantom", "--cases", "24", "--seed", "7", "--output", "set", folder=folder)
        for name, options in TRAINED.items():
            common = ["--model_name_or_path", "phantom-base", "--train_data", "set"]
            common += ["--max_steps", "3", "--lora_r", "1", "--learning_rate", "5e-3"]
            common += ["--stages", "train", "--controls", "none", "--report_to", "none"]
            script = [sys.executable, str(ROOT / "recipes" / "train_rm.py")]
            subprocess.run(
                [*script, *common, *options, "--output_dir", name], check=True, cwd=folder
            )
            shutil.copytree(folder / name / "adapter", folder / f"{name}_adapter")
            shutil.copytree(folder / f"{name}_adapter", target / f"{name}_adapter")
        shutil.copytree(HERE / "cases", folder / "cases")
        for name, options in EVALUATED.items():
            data = ["--benchmark", "med_rewardbench", "--data_root", "cases", "--no_images"]
            medrm("evaluate", *options, *data, "--output_dir", f"at/{name}", folder=folder)
            (target / "evaluations" / name).mkdir(parents=True)
            for file in (*KEPT, "verdicts.jsonl"):
                if (folder / "at" / name / file).is_file():
                    shutil.copy2(folder / "at" / name / file, target / "evaluations" / name)
        declared = ["--allowed_differences", "readout", "--output_dir", "comparison"]
        medrm("compare", "at/base_likelihood", "at/reward", *declared, folder=folder)
        (target / "comparison").mkdir()
        shutil.copy2(folder / "comparison" / "comparison.json", target / "comparison")


if __name__ == "__main__":
    make(Path(sys.argv[1]).resolve())
