"""What was imported as a set: votes.jsonl, copies of the images, and what was not taken."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from medrm.data.decoding import use_decoded
from medrm.data.image_references import (
    ConvertedFile,
    ImageOptions,
    cached_images,
    file_images,
)
from medrm.data.inline_images import MAX_STORED_BYTES, inline_bytes
from medrm.data.medical.converted_set import ConvertedTally
from medrm.data.medical.converter import medical_kind
from medrm.data.pseudonyms import key_name, shown_reader
from medrm.data.readers.votes_jsonl import GROUPS, INDEPENDENT, VOTES_FILE, line_problems
from medrm.data.row_tables import Row
from medrm.errors import DataError, alike_together, report, shortened
from medrm.exchange.case_files import EXPORTED_IMAGE, IMAGES_FOLDER, image_suffix, restored
from medrm.exchange.hash_keys import HASH_KEY, REPORT_FILE
from medrm.exchange.imported import Imported, Importer, Opened, Unread, names_alike, unread
from medrm.exchange.joined_set import READER_ADDRESSES, JoinedReaders, joined_lines
from medrm.exchange.patient_tally import PatientTally
from medrm.files import file_digest
from medrm.output_folder import new_folder
from medrm.schema import ImageRef
from medrm.version import __version__

_MOST_WRITTEN = 2**31
"""2 GiB of votes: a small workbook may name one long text in a million cells."""

_DICOM_SUFFIXES = (".dcm", ".dicom", ".dic")

_BESIDE_EXPORT = (
    "put the file to import beside cases.jsonl in the folder that `medrm data export` wrote, or "
    "give that folder by --image_root"
)

_NO_IMAGE = ("it has no image in ", "its image is ")
"""How importers begin to say that a row lacks its image."""

_OF_CASE = {
    "images": "images",
    "question": "question",
    "context": "earlier turns",
    "answers": "answers",
    **{key: key for key in (*INDEPENDENT, *GROUPS)},
}
"""What all lines of a case must have in common, to its name."""


def write_votes(
    output: Path,
    opened: Opened,
    importer: Importer,
    joined: Path | None = None,
    *,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Imports a file as a set in a new folder, and returns the report that is written there.

    A line that the reader of votes would refuse is not taken, nor one with an image that is not
    there or cannot be decoded, so that the set can always be read.

    Args:
        output: the folder; it appears complete or not at all.
        opened: the file.
        importer: of its form.
        joined: the folder of a set of votes that are written before those of the file.
        overwrite: whether an earlier import is replaced.

    Raises:
        DataError: not one row can be taken, or the votes are too large.
        ConfigError: the folder cannot be written.
    """
    with new_folder(output, opened.path, (REPORT_FILE,), overwrite=overwrite) as draft:
        imported = importer.read(opened)
        writer, readers = _SetWriter(draft, opened), JoinedReaders(joined)
        written = own_lines = 0
        uninterpreted: Counter[str] = Counter()
        with (draft / VOTES_FILE).open("wb") as file:
            for is_joined, folder, place, line in _all_lines(opened, imported, joined):
                if is_joined:
                    readers.add(line)
                else:
                    line = readers.named(line, imported.addresses)
                taken = writer.take(place, line, folder)
                if isinstance(taken, str):
                    imported.unread.append(unread(place, taken, line))
                else:
                    own_lines += not is_joined
                    if not is_joined and "extra" not in opened.columns:
                        uninterpreted.update([*(taken.get("extra") or ())])
                    written += file.write(f"{json.dumps(taken, ensure_ascii=False)}\n".encode())
                if written > _MOST_WRITTEN:
                    raise DataError(
                        f"{opened.path} gives votes of more than {_MOST_WRITTEN:,} bytes; split it."
                    )
        if uninterpreted:
            named = ", ".join(f"{name!r} ({count})" for name, count in uninterpreted.items())
            imported.notes.append(f"Not interpreted, and kept in `extra` (lines): {named}.")
        writer.remove_unused()
        imported.notes += readers.notes
        summary = _report(opened, importer, imported, writer)
        summary[READER_ADDRESSES] = readers.addresses
        if not own_lines:
            _refuse_nothing(opened.path, summary, imported)
        text = json.dumps(summary, ensure_ascii=False, indent=1, default=str)
        (draft / REPORT_FILE).write_text(text + "\n", encoding="utf-8")
    return summary


def _all_lines(
    opened: Opened, imported: Imported, joined: Path | None
) -> Iterator[tuple[bool, Path, str, Row]]:
    """Yields whether a line is of the joined set or of the file, the folder of its images, and it.

    Raises:
        DataError: what is to be joined is no set.
    """
    if joined is not None:
        for place, line in joined_lines(joined, imported):
            yield True, joined, place, line
    folder = opened.path.parent
    for place, line in restored(imported.lines, folder):
        yield False, folder, place, line


class _Pictures(NamedTuple):
    """What became of an image of a line.

    Attributes:
        names: paths of its pictures in the set.
        cluster_keys: patients and studies of its files, as keyed hashes.
    """

    names: list[str]
    cluster_keys: list[str]


class _SetWriter:
    """Checks lines, copies their images, and counts what is written.

    Args:
        folder: of the set.
        opened: the file that is imported.
    """

    def __init__(self, folder: Path, opened: Opened) -> None:
        self._folder = folder
        self._first: dict[str, tuple[str, tuple[int, ...]]] = {}
        self._voted: dict[tuple[str, str, str], str] = {}
        self._options = ImageOptions(opened.image_root, opened.image_conversion)
        self._stored: dict[tuple[Path, str], _Pictures] = {}
        self.converted = ConvertedTally()
        self.patients = PatientTally()
        self._names: dict[str, str] = {}
        self._used: set[str] = set()
        self._undecoded: dict[str, str] = {}
        self._readers: dict[str, str] = {}
        self.lines = 0
        self.without_image: list[str] = []
        self.annotators: Counter[str] = Counter()
        self.votes: dict[str, Counter[str]] = {}

    @property
    def addresses(self) -> dict[str, str]:
        """Readers who are known by an address, to how they are called in what may leave."""
        return {name: shown for shown, name in self._readers.items() if shown != name}

    @property
    def cases(self) -> int:
        """How many there are."""
        return len(self._first)

    @property
    def images(self) -> int:
        """How many different ones the lines name."""
        return len(self._used)

    def remove_unused(self) -> None:
        """Removes copies of images that only lines have which were not taken."""
        for name in {*self._names.values()} - self._used:
            (self._folder / name).unlink()

    def take(self, place: str, line: Row, folder: Path) -> Row | str:
        """Stores the images of a line and returns it as it is written, or why it is not taken.

        Args:
            place: of the line.
            line: to write.
            folder: to which the paths of its images are relative.
        """
        written = [line["image"]] if "image" in line else []
        images = line.get("images", written)
        taken = {key: value for key, value in line.items() if key != "image"}
        if isinstance(taken.get("annotator"), str):  # a sheet comes back with what was shown
            taken["annotator"] = self._readers.get(taken["annotator"], taken["annotator"])
        taken["images"] = [""] * len(images) if isinstance(images, list) else images
        if problems := line_problems(taken):
            return "; ".join(problems)
        try:
            stored = [self._store(image, folder) for image in images]
            if taken.get("context") and any(len(pictures.names) > 1 for pictures in stored):
                raise DataError("an image of several pictures beside earlier turns is not imported")
        except DataError as error:
            self.without_image.append(place)
            return str(error).rstrip(".")
        taken["images"] = list(chain.from_iterable(pictures.names for pictures in stored))
        keys = chain.from_iterable(pictures.cluster_keys for pictures in stored)
        taken = self.patients.completed(place, taken, keys, folder)
        problem = self._conflict(place, taken)
        if problem is None:
            self._count(place, taken)
        return taken if problem is None else problem

    def _conflict(self, place: str, line: Row) -> str | None:
        """Returns what does not fit the earlier lines of the same case."""
        case_id, annotator = str(line["case_id"]), str(line["annotator"])
        shared = _shared_digests(line)
        first, of_case = self._first.setdefault(case_id, (place, shared))
        compared = zip(_OF_CASE.values(), shared, of_case, strict=True)
        other = [name for name, digest, earlier in compared if digest != earlier]
        if other:
            return (
                f"case {shortened(case_id)!r} has other {', '.join(other)} than on {first}; all "
                "rows of a case must agree, else give them ids of their own"
            )
        for dimension, value in line["votes"].items():
            voted = self._voted.get((case_id, annotator, dimension))
            if value is not None and voted is not None:
                return (
                    f"annotator {shortened(annotator)!r} votes twice on {shortened(dimension)!r} "
                    f"of case {shortened(case_id)!r}, also on {voted}; keep one"
                )
        return None

    def _count(self, place: str, line: Row) -> None:
        case_id, annotator = str(line["case_id"]), str(line["annotator"])
        self.lines += 1
        self._used.update(line["images"])
        self.patients.remember(line)
        if annotator not in self.annotators:
            self._readers[shown_reader(annotator)] = annotator
        self.annotators[annotator] += 1
        for dimension, value in line["votes"].items():
            if value is not None:
                self._voted[case_id, annotator, dimension] = place
                self.votes.setdefault(dimension, Counter())[str(value)] += 1

    def _store(self, written: Any, folder: Path) -> _Pictures:
        """Copies an image, or the pictures of a medical one, and returns them.

        Raises:
            DataError: it is not there, or leads outside the folders.
        """
        if isinstance(written, dict):  # as `datasets` stores it
            written = written.get("bytes") or written.get("path")
        content = written if isinstance(written, bytes) else None
        if content is None and not isinstance(written, str):
            raise DataError(f"an image is {shortened(repr(written))}; give a path")
        if content is None:
            if (folder, written) in self._stored:
                return self._stored[folder, written]
            content = inline_bytes(written)
        if content is not None and medical_kind(content) is None:
            return _Pictures([self._write(content, image_suffix(content), "in the data")], [])
        if content is not None:
            return self._pictures(cached_images(content, self._options), "")
        path = self._portable(written, folder)
        if EXPORTED_IMAGE.fullmatch(path) and not any(
            (root / path).exists() for root in (self._options.root, folder) if root is not None
        ):
            raise DataError(f"there is no file {path!r}; {_BESIDE_EXPORT}")
        refs = file_images(path, folder, None, self._options)
        stored = self._stored[folder, written] = self._pictures(refs, Path(path).suffix.lower())
        return stored

    def _pictures(self, refs: Sequence[ImageRef], suffix: str) -> _Pictures:
        """Copies what references stand for; of a medical image nothing but its pictures."""
        names, cluster_keys = [], dict[str, None]()
        for ref in refs:
            if ref.problem is not None:
                raise DataError(ref.problem)
            if isinstance(ref.read, ConvertedFile):
                names.append(self._write(ref.read(), ".png", ref.name))
                cluster_keys |= dict.fromkeys(ref.read.about.get("independent", ()))
            else:
                if suffix in _DICOM_SUFFIXES:
                    raise DataError(
                        f"image {ref.name!r} is named as DICOM, and is not read as such; it may "
                        "name the patient, and is not copied"
                    )
                names.append(self._write(ref.read(), suffix, ref.name))
        self.converted.add(refs)
        return _Pictures(names, [*cluster_keys])

    def _portable(self, written: str, folder: Path) -> str:
        """Returns a path as this system writes it, for Windows separates folders otherwise."""
        roots = filter(None, (self._options.root, folder))
        is_there = any(os.path.lexists(root / written.replace("\0", "")) for root in roots)
        return written if is_there else written.replace("\\", "/")

    def _write(self, content: bytes, suffix: str, name_in_source: str) -> str:
        """Copies a picture, if it is one that can be decoded, and returns its path in the set.

        Raises:
            DataError: it cannot be decoded, or is too large.
        """
        if len(content) > MAX_STORED_BYTES:
            raise DataError(f"an image is larger than {MAX_STORED_BYTES} bytes")
        digest = hashlib.sha256(content).hexdigest()
        name = self._names.get(digest)
        if name is None:
            self._check_decodes(content, digest, name_in_source)
            name = self._names[digest] = f"{IMAGES_FOLDER}/{digest}{suffix}"
            (self._folder / IMAGES_FOLDER).mkdir(exist_ok=True)
            (self._folder / name).write_bytes(content)
        return name

    def _check_decodes(self, content: bytes, digest: str, name: str) -> None:
        if digest not in self._undecoded:
            try:
                use_decoded(content, name, lambda image, mode: None)
            except DataError as error:
                self._undecoded[digest] = str(error)
                raise
            return
        raise DataError(self._undecoded[digest])


def _shared_digests(line: Row) -> tuple[int, ...]:
    """Returns what all lines of a case must have in common, each as a hash of this process."""
    shared = {key: line.get(key) for key in _OF_CASE}
    shared["answers"] = line.get("answers", [line.get("answer_a"), line.get("answer_b")])
    return tuple(hash(repr(value or None)) for value in shared.values())


def _report(
    opened: Opened, importer: Importer, imported: Imported, writer: _SetWriter
) -> dict[str, Any]:
    rows = sorted([*opened.records.unread, *imported.unread], key=_position)
    no_image = [row.place for row in imported.unread if row.reason.startswith(_NO_IMAGE)]
    without_image = writer.without_image + no_image
    readers = dict(writer.annotators.most_common())
    return {
        "medrm": __version__,
        "source": {"name": opened.path.name, "sha256": file_digest(opened.path)},
        "importer": importer.name,
        HASH_KEY: key_name(),
        "rows": opened.records.count,
        "lines": writer.lines,
        "cases": writer.cases,
        "annotators": readers,
        "shown_as": writer.addresses,
        "votes": {name: dict(counts.most_common()) for name, counts in writer.votes.items()},
        "images": writer.images,
        "converted": writer.converted.summary(),
        "without_image": len(without_image),
        "rows_without_image": len({*without_image}),
        "not_taken": len(rows),
        "rows_not_taken": len({row.place for row in rows}),
        "reasons": alike_together([f"{row.place}: {row.reason}" for row in rows]),
        "unread": [row._asdict() for row in rows],
        "notes": [*opened.notes, *imported.notes, *names_alike(readers), *writer.patients.notes()],
        "settings": imported.settings,
    }


def _position(row: Unread) -> list[int]:
    return [int(number) for number in re.findall(r"\d{1,15}", row.place)]


def _refuse_nothing(path: Path, summary: dict[str, Any], imported: Imported) -> None:
    """Raises DataError: not one row was taken."""
    reasons = [*summary["reasons"], *imported.notes] or ["it has no rows"]
    rows = "its 1 row" if summary["rows"] == 1 else f"its {summary['rows']} rows"
    raise DataError(report(f"{path}: none of {rows} is taken.", reasons))
