"""How many tokens a case's row has, counted beside the model's thread: vLLM's `usage`."""

from __future__ import annotations

import copy
import threading
from functools import cached_property

from medrm.data.images import decode
from medrm.schema import Case
from medrm.scorer.collator import Collator
from medrm.scorer.readouts.answer_rewards import SavedScorer


class RowCounter:
    """Counts tokens with a processor of its own: that of the model is used by one thread at a time.

    Args:
        scorer: whose rows are counted.
    """

    def __init__(self, scorer: SavedScorer) -> None:
        self._scorer, self._lock = scorer, threading.Lock()

    @cached_property
    def _collator(self) -> Collator:
        contract = self._scorer.contract
        return Collator(copy.deepcopy(self._scorer.processor), contract.reward_template)

    def tokens_of(self, case: Case) -> int:
        """Returns the tokens of a case's longest row, those of its images included.

        Raises:
            DataError: an image cannot be decoded.
        """
        sizes = tuple(decode(image).size for image in case.images)
        with self._lock:
            texts = [row.text for row in self._collator.answer_rows(case)]
            lengths = map(len, self._collator.token_ids(texts))
            return max(lengths) + self._collator.image_tokens(sizes)
