"""Mixtures: training cases of several sets, `A=0.7,B=0.3`, in shares, without repetitions.

What is drawn follows from the seed and from what the cases say, not from the order of their rows
nor from the number of processes. Columns of the sets' indexes are compared; no image is read.

    1. repeated   a case whose question, answers and images an earlier named set has is left out
    2. capped     of the cases with one prompt, or of one image, so many are kept
    3. drawn      the most cases of which the sets have the stated shares; a case counts once
"""

from __future__ import annotations

import hashlib
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from medrm.data.case_set import CaseSet, MixedSet, dimensions_of, read_set
from medrm.data.medical.converted_set import joined_conversions
from medrm.data.sources import description_names, is_path
from medrm.data.store.indexed_cases import IndexedCases, Indices, column, list_column, select
from medrm.data.store.joint_index import JoinedCases, open_joint_index, set_numbers
from medrm.errors import ConfigError, DataError, raise_problems, shortened
from medrm.schema import Case

Hashes = NDArray[np.uint64]

_PIECE = r'(?:"(?:[^"]|"")*"|[^,"])+'
_QUOTED = re.compile(r'"((?:[^"]|"")*)"(?:=(.*))?')
_SHARE = re.compile(r"=\s*[0-9.]+(?:[eE][-+]?[0-9]+)?\s*$")
_RULE = (
    "Give SOURCE=SHARE,SOURCE=SHARE with shares that sum to 1, or SOURCE,SOURCE for all cases of "
    'each; a path that holds "," or "=" stands in double quotes, as in "a,b.jsonl"=0.7,other=0.3'
)


@dataclass(frozen=True)
class Drawing:
    """What is drawn from sets.

    Attributes:
        seed: decides which cases.
        per_prompt: most cases with one question about the same images; None: all.
        per_image: most cases that show one image; None: all.
    """

    seed: int = 0
    per_prompt: int | None = None
    per_image: int | None = None


class _Named(NamedTuple):
    """A source as a mixture names it; without a share all of its cases count."""

    source: str
    share: float | None


def named_sources(written: str) -> list[_Named]:
    """Returns the sources that an option names: one, or those of a mixture.

    What exists as a path is one, whatever it holds.

    >>> named_sources("phantom=0.7,rlaif_v=0.3")
    [_Named(source='phantom', share=0.7), _Named(source='rlaif_v', share=0.3)]
    >>> named_sources('"a,b=1.jsonl",phantom')
    [_Named(source='a,b=1.jsonl', share=None), _Named(source='phantom', share=None)]

    Raises:
        ConfigError: no such list, shares that are no shares, or a source that is named twice.
    """
    if not set(written) & set(',="') or is_path(written):
        return [_Named(written, None)]
    if not re.fullmatch(f"{_PIECE}(?:,{_PIECE})*", written):
        raise ConfigError(f"train_data {shortened(written)!r} is no list of sources. {_RULE}.")
    named, problems = [], []
    for piece in map(str.strip, re.findall(_PIECE, written)):
        try:
            named.append(_named(piece))
        except ValueError as error:
            problems.append(f"{shortened(piece)!r}: {error}")
    shares = [share for _, share in named if share is not None]
    if not problems and shares and len(shares) < len(named):
        problems.append("some sources have a share and others none")
    elif not problems and shares and abs(sum(shares) - 1) > 1e-6:
        problems.append(f"the shares sum to {sum(shares):g}")
    counts = Counter(Path(source).resolve() for source, _ in named)
    problems += [f"{path.name!r} is named twice" for path, count in counts.items() if count > 1]
    raise_problems(ConfigError, f"train_data {shortened(written)!r}", problems, f". {_RULE}")
    return named


def check_is_one_set(benchmark: str) -> None:
    """Refuses a mixture as a benchmark, whose numbers would depend on the shares.

    Raises:
        ConfigError: says how each of its sets is measured.
    """
    pieces = [] if is_path(benchmark) else re.findall(_PIECE, benchmark)
    names = [_SHARE.sub("", piece.strip()) for piece in pieces]
    known = description_names()
    are_sets = any(is_path(name) or name in known for name in names[:64])
    if not _SHARE.search(benchmark) and (len(names) < 2 or not are_sets):
        return
    each = " and ".join(f"--benchmark {shortened(name)}" for name in names)
    raise ConfigError(
        f"benchmark {shortened(benchmark)!r} is no path; a list of sets or a share of one is taken "
        f"by train_data alone, for what is measured on a mixture depends on its shares. Evaluate "
        f"on each set by itself: {each}; the test part of a mixture is what train_data without "
        "benchmark leaves."
    )


def _named(piece: str) -> _Named:
    """Returns the source of one piece of a list.

    Raises:
        ValueError: it is empty, or its share is no positive number.
    """
    if is_path(piece):
        return _Named(piece, None)
    if quoted := _QUOTED.fullmatch(piece):
        source, share = quoted[1].replace('""', '"'), quoted[2]
    else:
        source, _, share = piece.rpartition("=") if "=" in piece else (piece, "", None)
    if not source.strip() or ('"' in piece and not quoted):
        raise ValueError("no source is named")
    if share is None:
        return _Named(source, None)
    try:
        number = float(share)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise ValueError(f"there is no such path, and {share!r} is no positive share")
    return _Named(source.strip(), number)


def read_training_set(
    written: str,
    drawing: Drawing | None = None,
    read: Callable[[str], CaseSet] = read_set,
) -> CaseSet:
    """Returns the cases of one source, or those that are drawn of a mixture's.

    Args:
        written: a source as `read` takes it, or several; see `named_sources`.
        drawing: what is drawn; None: by the default seed, without caps.
        read: reads one source.

    Raises:
        ConfigError: the sources or shares are not accepted.
        DataError: a source is not as it should be, or has no case left.
    """
    named, drawing = named_sources(written), drawing or Drawing()
    sets = [read(source) for source, _ in named]
    if len(sets) == 1 and drawing.per_prompt is None and drawing.per_image is None:
        return sets[0]
    names = _distinct_names([case_set.name for case_set in sets])
    drawn, mixed = _drawn(names, sets, [share for _, share in named], drawing)
    single = len(sets) == 1
    joined = [
        JoinedCases("" if single else name, cases) for name, cases in zip(names, drawn, strict=True)
    ]
    joint = IndexedCases(open_joint_index(joined))
    content = {
        "cases": joint,
        "digest": joint.case_index.about["digest"],
        "dimensions": dimensions_of(joint),
        "mixed": mixed,
        "converted": joined_conversions({each.name: each.converted for each in sets}),
    }
    if single:
        return replace(sets[0], **content)
    synthetic = all(case_set.synthetic for case_set in sets)
    return CaseSet("+".join(names), "mixture", synthetic=synthetic, **content)


def in_shares(cases: Sequence[Case], mixed: Sequence[MixedSet], seed: int) -> Sequence[Case]:
    """Returns the most cases of a mixture's part of which its sets have their shares exactly.

    Args:
        cases: of the mixture.
        mixed: its sets.
        seed: decides which cases are left out.
    """
    shares = [part.share for part in mixed if part.share is not None]
    if not shares or not isinstance(cases, IndexedCases):
        return cases
    ranks, numbers = _ranks(cases, seed), set_numbers(cases)
    of_sets = [np.flatnonzero(numbers == number) for number in range(len(mixed))]
    counts = _counts(list(map(len, of_sets)), shares)
    kept = [_first(ranks, indices, count) for indices, count in zip(of_sets, counts, strict=True)]
    return select(cases, np.sort(np.concatenate(kept)))


def set_counts(cases: Sequence[Case], mixed: Sequence[MixedSet]) -> list[int]:
    """Returns how many cases of a mixture's part each of its sets has."""
    assert isinstance(cases, IndexedCases)
    counts: list[int] = np.bincount(set_numbers(cases), minlength=len(mixed)).tolist()
    return counts


def _distinct_names(names: Sequence[str]) -> list[str]:
    """Returns names of sets, those that occur again with a number behind them."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}#{seen[name]}")
    return distinct


def _drawn(
    names: Sequence[str],
    sets: Sequence[CaseSet],
    shares: Sequence[float | None],
    drawing: Drawing,
) -> tuple[list[IndexedCases], tuple[MixedSet, ...]]:
    """Returns the cases that are drawn of each set, in its order, and what became of the others.

    Raises:
        DataError: a set of which nothing is left.
    """
    cases = [_indexed(case_set.cases) for case_set in sets]
    looks = [_look(case_list) for case_list in cases]
    distinct = [
        np.flatnonzero(~np.isin(look.texts, _joined([earlier.texts for earlier in looks[:number]])))
        for number, look in enumerate(looks)
    ]
    ranks = [_ranks(case_list, drawing.seed) for case_list in cases]
    kept = _capped(looks, distinct, ranks, drawing)
    counts = list(map(len, kept))
    if empty := [name for name, count in zip(names, counts, strict=True) if not count]:
        raise DataError(
            f"Of {', '.join(empty)} no case is left: all stand in sets that are named before, or "
            "go beyond a cap. Leave it out of train_data, or name it first."
        )
    stated = [share for share in shares if share is not None]
    wanted = _counts(counts, stated) if stated else counts
    if none := [name for name, count in zip(names, wanted, strict=True) if not count]:
        available = ", ".join(f"{n} {c:,}" for n, c in zip(names, counts, strict=True))
        raise DataError(
            f"The shares leave no case of {', '.join(none)} (cases there are: {available}). Give "
            "that set a larger share, or more cases of the others."
        )
    chosen = [
        np.sort(_first(rank, indices, count))
        for rank, indices, count in zip(ranks, kept, wanted, strict=True)
    ]
    mixed = tuple(
        MixedSet(
            name, case_set, share,
            repeated=len(case_list) - len(unrepeated),
            capped=len(unrepeated) - len(within_caps),
            drawn=len(drawn),
        )
        for name, case_set, share, case_list, unrepeated, within_caps, drawn in zip(
            names, sets, shares, cases, distinct, kept, chosen, strict=True
        )
    )  # fmt: skip
    return [
        IndexedCases(c.case_index, c.indices[i]) for c, i in zip(cases, chosen, strict=True)
    ], mixed


def _indexed(cases: Sequence[Case]) -> IndexedCases:
    assert isinstance(cases, IndexedCases)  # as `read_set` gives them
    return cases


class _Look(NamedTuple):
    """What cases have in common, as numbers: 64-bit hashes, one for each case.

    Attributes:
        texts: of question, answers and images; in whichever order the answers stand.
        prompts: of the question and its images.
        images: of each image that has bytes.
        owners: the index of each image's case.
    """

    texts: Hashes
    prompts: Hashes
    images: Hashes
    owners: Indices


def _look(cases: IndexedCases) -> _Look:
    digests, owners = list_column(cases, "image_digests")
    names, inverse = np.unique(digests, return_inverse=True)
    hashes = np.array([int(name[:16] or b"0", 16) for name in names.tolist()], np.uint64)[inverse]
    pictures = np.zeros(len(cases), np.uint64)
    np.add.at(pictures, owners, hashes | np.uint64(1))
    has_bytes = digests != b""
    if not has_bytes.all():  # an image without bytes is like no other one
        unlike = owners[~has_bytes]
        np.add.at(pictures, unlike, _ranks(cases, 0)[unlike])
    pictures *= np.uint64(0x9E3779B97F4A7C15)  # so that sums of hashes are told apart
    texts, questions = column(cases, "text_hash"), column(cases, "question_hash")
    return _Look(texts ^ pictures, questions ^ pictures, hashes[has_bytes], owners[has_bytes])


def _ranks(cases: IndexedCases, seed: int) -> Hashes:
    """Returns a random number for each case that depends on seed and case alone."""
    digests = column(cases, "digest").tolist()
    hashes = (hashlib.sha256(b"%d drawn:%s" % (seed, digest)).digest()[:8] for digest in digests)
    return np.frombuffer(b"".join(hashes), "<u8")


def _first(ranks: Hashes, indices: Indices, count: int) -> Indices:
    """Returns of some cases the `count` of lowest rank."""
    lowest: Indices = indices[np.argsort(ranks[indices], kind="stable")[:count]]
    return lowest


def _joined(hashes: Sequence[Hashes]) -> Hashes:
    return np.concatenate([np.zeros(0, np.uint64), *hashes])


def _capped(
    looks: Sequence[_Look],
    indices: Sequence[Indices],
    ranks: Sequence[Hashes],
    drawing: Drawing,
) -> list[Indices]:
    """Returns the cases of each set of which no prompt and no image is shown too often, in all."""
    if drawing.per_prompt is None and drawing.per_image is None:
        return list(indices)
    _, prompts = np.unique(_joined([look.prompts for look in looks]), return_inverse=True)
    _, images = np.unique(_joined([look.images for look in looks]), return_inverse=True)
    first_case = np.cumsum([0, *(len(look.prompts) for look in looks)])
    owners = np.concatenate(
        [look.owners + start for look, start in zip(looks, first_case[:-1], strict=True)]
    )
    image_starts = np.searchsorted(owners, np.arange(first_case[-1] + 1))
    numbers = np.concatenate(
        [own + start for own, start in zip(indices, first_case[:-1], strict=True)]
    )
    order = numbers[np.argsort(np.concatenate(ranks)[numbers], kind="stable")]
    prompt_counts, image_counts = np.zeros(len(prompts), int), np.zeros(len(images), int)
    most_prompts = drawing.per_prompt or math.inf
    most_images = drawing.per_image or math.inf
    kept = np.zeros(first_case[-1], np.bool_)
    for number in order.tolist():
        prompt = prompts[number]
        shown = np.unique(images[image_starts[number] : image_starts[number + 1]])
        if prompt_counts[prompt] < most_prompts and (image_counts[shown] < most_images).all():
            prompt_counts[prompt] += 1
            image_counts[shown] += 1
            kept[number] = True
    return [
        np.flatnonzero(kept[start:end]) for start, end in itertools.pairwise(first_case.tolist())
    ]


def _counts(available: Sequence[int], shares: Sequence[float]) -> list[int]:
    """Returns the most cases of each set that have the shares; a case counts once.

    >>> _counts([70, 1000], [0.7, 0.3]), _counts([70, 12], [0.7, 0.3])
    ([70, 30], [28, 12])
    """
    total = min(int(count / share + 1e-9) for count, share in zip(available, shares, strict=True))
    exact = [total * share for share in shares]
    counts = [int(number + 1e-9) for number in exact]
    # The cases that rounding leaves over go where most is missing.
    missing = sorted(range(len(shares)), key=lambda n: counts[n] - exact[n])
    for number in missing[: total - sum(counts)]:
        counts[number] = min(counts[number] + 1, available[number])
    return counts
