"""Checkpoints that are whole or are none: drafted, sealed, and only then in their place.

transformers writes a checkpoint file by file under its final name. Here it is written into
`.medrm-draft-checkpoint-<step>/` in the run folder; when every process has written its part, the
main one seals it (`integrity.seal`) and renames it. Older checkpoints are removed after that.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.trainer_utils import SaveStrategy

from medrm.errors import AdapterError
from medrm.failures import naming
from medrm.files import DRAFT, discard, replace_folder, write_atomically
from medrm.integrity import damage, is_sealed, seal

PREFIX = "checkpoint-"

STATE_FILE = "trainer_state.json"

IDENTITY_FILE = "run_identity.json"
"""Of which run a checkpoint is."""

_PIECES = {
    "weights": ("adapter_model.safetensors", "model*.safetensors", "pytorch_model*.bin", "*/"),
    "the optimiser's state": ("optimizer.pt", "optimizer.bin", "*/"),
    "the random generators' state": ("rng_state*.pth",),
}
"""What training goes on from; DeepSpeed and FSDP keep parts of it in folders."""

_OF_BEST = ("weights",)
"""What a training ends with."""


def checkpoints_of(run_folder: Path) -> dict[int, Path]:
    """Returns the folders of a run's checkpoints by their step, whole or not."""
    folders = (path for path in run_folder.glob(f"{PREFIX}*") if path.is_dir())
    by_number = {path.name.removeprefix(PREFIX): path for path in folders}
    return {int(number): path for number, path in by_number.items() if number.isdecimal()}


def identity_in(checkpoint: Path) -> str | None:
    """Returns of which run a checkpoint is; None: it does not tell, as before version 0.3."""
    try:
        record = json.loads((checkpoint / IDENTITY_FILE).read_text(encoding="utf-8"))
        return str(record["identity"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def problems_of(checkpoint: Path, best: bool) -> list[str]:
    """Returns why training cannot go on from a checkpoint; nothing where it can.

    Args:
        checkpoint: its folder. One without a manifest, as versions before 0.3 wrote it, counts when
            all that is needed is in it and can be opened.
        best: whether the run ends with its best checkpoint, which must then be whole, too.
    """
    problems = _problems(checkpoint, _PIECES)
    if problems or not best:
        return problems
    recorded = _best_of(checkpoint)
    if recorded is None or Path(recorded).name == checkpoint.name:
        return []
    folder = _found(recorded, checkpoint.parent)
    return [f"of the best one, {folder}: {problem}" for problem in _problems(folder, _OF_BEST)]


def _problems(checkpoint: Path, needed: Iterable[str]) -> list[str]:
    """Returns what is wrong with a checkpoint of which some of `_PIECES` are needed."""
    if not (checkpoint / STATE_FILE).is_file():
        return [f"{STATE_FILE} is missing"]
    problems = damage(checkpoint) if is_sealed(checkpoint) else _unreadable(checkpoint)
    return problems or [  # earlier versions wrote some without an optimiser (`save_only_model`)
        f"{piece} is missing"
        for piece in needed
        if not any(any(checkpoint.glob(pattern)) for pattern in _PIECES[piece])
    ]


def _best_of(checkpoint: Path) -> str | None:
    """Returns the best checkpoint at the time of one, as it was recorded."""
    state: dict[str, Any] = json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))
    best: str | None = state.get("best_model_checkpoint")
    return best


def _found(recorded: str, run_folder: Path) -> Path:
    """Returns a recorded checkpoint; the run folder may lie elsewhere now."""
    moved = run_folder / Path(recorded).name
    return moved if moved.is_dir() else Path(recorded)


def _unreadable(checkpoint: Path) -> list[str]:
    """Returns which files of a checkpoint without a manifest are damaged, as far as they tell."""
    problems = []
    for path in sorted(path for path in checkpoint.iterdir() if path.is_file()):
        try:
            _open(path)
        except (OSError, ValueError, SafetensorError, zipfile.BadZipFile) as error:
            problems.append(f"{path.name} cannot be read ({error})")
    return problems


def _open(path: Path) -> None:
    """Raises an error where a file is damaged in a way that its own format tells."""
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    elif path.suffix == ".safetensors":
        with safe_open(path, framework="pt"):
            pass
    elif path.suffix in (".pt", ".pth", ".bin"):
        with zipfile.ZipFile(path) as archive:
            if (part := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"{part} is damaged")


class _BestFoundAgain(TrainerCallback):
    """Finds the best checkpoint of a run whose folder was moved: transformers then forgets it.

    Args:
        checkpoint: from which training goes on.
    """

    def __init__(self, checkpoint: Path) -> None:
        self.checkpoint = checkpoint

    def on_train_begin(self, args: Any, state: TrainerState, *unused: Any, **kwargs: Any) -> None:
        """Names it by where it lies now."""
        recorded = _best_of(self.checkpoint)
        if state.best_model_checkpoint is None and recorded is not None:
            state.best_model_checkpoint = str(_found(recorded, self.checkpoint.parent))


class WholeCheckpoints(Trainer):
    """Goes before a trainer of transformers or TRL in the bases, before other mixins as well."""

    run_identity: str | None = None
    """Is written into every checkpoint; None: it is of no run."""
    _draft: Path | None = None

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Trains, or goes on from the folder of a checkpoint."""
        if isinstance(resume_from_checkpoint, (str, Path)):
            self.add_callback(_BestFoundAgain(Path(resume_from_checkpoint)))
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _get_output_dir(self, trial: Any) -> str:
        """Returns where checkpoints are written."""
        if self._draft is not None:
            return str(self._draft)
        return str(super()._get_output_dir(trial))

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Writes a checkpoint, which appears whole; all processes call it together.

        Where nodes share no disk (`save_on_each_node`), one process of each seals what is there.
        """
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"{PREFIX}{self.state.global_step}"
        draft = run_folder / f"{DRAFT}{folder.name}"
        if self.args.should_save:
            shutil.rmtree(draft, ignore_errors=True)  # of a killed process
        self.accelerator.wait_for_everyone()
        try:
            self._draft, best = draft, self.state.best_model_checkpoint
            with naming(draft):
                super()._save_checkpoint(model, trial)
            self._draft, self.state.best_model_checkpoint = None, best
            self._name_best(run_folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                self.state.save_to_json(str(draft / folder.name / STATE_FILE))
                if self.run_identity is not None:
                    record = json.dumps({"identity": self.run_identity}).encode()
                    write_atomically(draft / folder.name / IDENTITY_FILE, [record])
                seal(draft / folder.name)
                replace_folder(draft / folder.name, folder)
                shutil.rmtree(draft)
                self._remove_older(run_folder, folder)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(draft, ignore_errors=True)  # a full disk has room again
            raise
        finally:
            self._draft = None
        self.accelerator.wait_for_everyone()

    def _name_best(self, run_folder: Path) -> None:
        """Records the best checkpoint by its final name; transformers looks in the draft.

        One that was written because the training was stopped is none: the straight one lacks it.
        """
        state, step = self.state, self.state.best_global_step
        folder = run_folder / f"{PREFIX}{step}"
        saved = step == state.global_step or folder.is_dir()
        if step and self.args.save_strategy == SaveStrategy.STEPS:
            saved = saved and (step % max(state.save_steps, 1) == 0 or step >= state.max_steps)
        if step and saved and self.args.save_strategy != SaveStrategy.NO:
            self.state.best_model_checkpoint = str(folder)

    def _remove_older(self, run_folder: Path, newest: Path) -> None:
        """Removes what `save_total_limit` does not keep: the newest and the best always stay.

        Of the others those go first that are ahead of this step, which is where training was taken
        up again behind them; so no damaged one outlasts a whole one.
        """
        best, step = self.state.best_model_checkpoint, self.state.global_step
        kept = {newest.name, Path(best).name if best else newest.name}
        folders = checkpoints_of(run_folder)
        excess = len(folders) - max(self.args.save_total_limit or len(folders), len(kept))
        removable = [n for n in folders if folders[n].name not in kept]
        for number in sorted(removable, key=lambda n: (n < step, n))[: max(excess, 0)]:
            discard(folders[number])

    def _load_best_model(self) -> None:
        """Ends the training with the best checkpoint's weights.

        Raises:
            AdapterError: it is damaged, and others would be another result.
        """
        best = Path(str(self.state.best_model_checkpoint))
        problems = _problems(best, _OF_BEST)
        if problems:
            raise AdapterError(
                f"The training is to end with its best checkpoint, {best}, which is damaged: "
                f"{'; '.join(problems)}. Restore it and start the same command again, or remove "
                "it: the run then goes on from an earlier checkpoint, or anew."
            )
        super()._load_best_model()
