"""Which images a run trains on, those of the adapter that it goes on from included."""

from __future__ import annotations

import numpy as np

from medrm.config.parse import Run
from medrm.data.case_set import CaseSet
from medrm.data.images import examine
from medrm.data.medical.conversions import agreed_conversion
from medrm.data.store.indexed_cases import concatenate, list_column
from medrm.evaluation.benchmark import Benchmark
from medrm.evaluation.leak_check import check_images
from medrm.models.adapter_config import read_adapter_config
from medrm.models.published_contract import images_of
from medrm.models.training_images import KnownImages, digests_of
from medrm.pipeline.data_splits import DataSplits
from medrm.scorer.specs import saved_folder


def images_of_training(run: Run, splits: DataSplits) -> KnownImages:
    """Returns the images that a run's adapter will have been trained on.

    Raises:
        AdapterError: the adapter to go on from is not found.
    """
    cases = concatenate(splits.train, splits.development)
    stored = np.unique(list_column(cases, "image_digests")[0]).tolist()
    digests = digests_of(splits.facts[name.decode()].pixel_digest for name in stored)
    start = run.judge.init_adapter
    if start is None:
        return KnownImages(digests)
    earlier = images_of(saved_folder(start))
    if earlier.digests is None:
        return KnownImages(digests, f"of the adapter that it went on from, {earlier.gap}")
    return KnownImages(np.union1d(digests, earlier.digests), earlier.gap)


def refuse_seen_init_adapter(run: Run, benchmark: Benchmark, source: CaseSet) -> None:
    """Refuses to go on from an adapter that was trained on what is measured.

    Nor does a run go on from one whose medical images became pictures by another conversion.

    Args:
        run: that may go on from an adapter.
        benchmark: what is measured.
        source: what is trained on.

    Raises:
        ConfigError: by another conversion.
        DataError: names the cases whose images it has seen.
        AdapterError: it is not found.
    """
    start = run.judge.init_adapter
    if start is not None:
        folder = saved_folder(start)
        trained = read_adapter_config(folder).image_conversion
        for case_set in (source, benchmark.source):
            agreed_conversion(case_set.image_conversion, trained, start)
        check_images(images_of(folder), benchmark, examine(benchmark.cases))
