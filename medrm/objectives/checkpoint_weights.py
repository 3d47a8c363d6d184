"""Checkpoints of wholly trained models hold weights by the names that the model has in memory.

transformers writes some families' weights by the names of older versions, and its Trainer reads
them back as they stand: a resumed training, or one that ends with its best checkpoint, would go on
with a backbone into which nothing was read, and say so in a warning alone.
"""

from __future__ import annotations

import functools
from typing import Any

from transformers import PreTrainedModel

from medrm.errors import ConfigError


class NamedAsInMemory:
    """Goes before a trainer in the bases; without effect on adapters, whose names stay."""

    model: Any

    def _save(self, *args: Any, **kwargs: Any) -> None:
        model = self.model
        if isinstance(model, PreTrainedModel):
            save = functools.partial(model.save_pretrained, save_original_format=False)
            vars(model)["save_pretrained"] = save
        try:
            super()._save(*args, **kwargs)  # type: ignore[misc] # of the trainer
        finally:
            vars(model).pop("save_pretrained", None)

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Refuses weights that do not fill the model.

        Raises:
            ConfigError: names one.
        """
        tied = getattr(self.model, "all_tied_weights_keys", None) or {}
        unfit = [*load_result.unexpected_keys]
        unfit += [name for name in load_result.missing_keys if name not in tied]
        if unfit:
            raise ConfigError(
                f"The checkpoint does not fill the model: {len(unfit)} weights have other names, "
                f"such as {unfit[0]}. It is damaged, or of a version of medrm that could not go on "
                "from it; train anew with --overwrite_output_dir true."
            )
