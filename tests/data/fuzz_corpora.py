"""The corpora of the fuzzer: small sets of every form that is read, and how each is read."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from files import label, picture, png, row, vote, write_lines, write_parquet
from medical_samples import DICOM, write_series
from PIL import Image
from released_samples import SAMPLES, real_pocqi
from row_samples import PUBLIC_ROWS, ROW_SAMPLES, write_rows

from medrm.data.case_set import read_set
from medrm.data.images import examine
from medrm.data.lint import stored_findings
from medrm.data.readers.unlabelled import count_rows, input_files, read_rows
from medrm.pipeline.data_build import BuildRequest, build_cases

_SAID = {
    "seconds": {"accuracy": 12.5, "overall": 3},
    "confidence": "high",
    "reason": {"overall": "Both miss the lesion."},
    "comment": "blurred",
    "extra": {"row": 4},
    "context": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Which organ?"}]},
        {"role": "assistant", "content": "The liver."},
    ],
}
"""What a line of votes may say besides."""


def _votes(root: Path) -> Path:
    (root / "images").mkdir(parents=True)
    for number in (1, 2):
        (root / "images" / f"{number}.png").write_bytes(png(picture(number)))
    several = {"answer_a": ..., "answer_b": ..., "answers": ["x", "y", "z"]}
    rows = [
        vote("c1", "a1", patient="p", organ="brain", votes={"accuracy": "A", "overall": "tie"}),
        vote("c1", "a2", patient="p", organ="brain", votes={"accuracy": "B"}),
        vote("c2", "a1", image=..., images=["images/1.png", "images/2.png"]),
        vote("c3", "a1", **several, votes={"overall": [[0, 2], 1]}, question="Só?"),
        vote("c4", "a1", votes={"accuracy": "slightly_b", "overall": "neither"}, **_SAID),
    ]
    write_lines(root / "votes.jsonl", rows)
    (root / "dataset.json").write_text('{"ceiling": {"overall": 0.9}, "synthetic": true}')
    return root


def _layout(root: Path) -> Path:
    organs = {"brain": ["q1", "q2"], "GI_tract": ["q3"]}
    for organ, ids in organs.items():
        labels = [label(name, accuracy="A", overall="tie") for name in ids]
        write_lines(root / "pair_gt_all" / f"{organ}.jsonl", labels)
        rows = [row(name, int(name[1:])) for name in ids]
        write_parquet(root / "pair_gt_all" / "parquet" / f"{organ}.parquet", rows, "image")
    return root


def _preferences(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "1.png").write_bytes(png(picture(1)))
    part = {"type": "image_url", "image_url": {"url": "1.png"}}
    answers = {name: [{"role": "assistant", "content": name}] for name in ("chosen", "rejected")}
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [part, {"type": "text", "text": "Why?"}]},
    ]
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "chosen": "good", "rejected": "bad", "images": ["1.png"], "case_id": 7},
        {"prompt": turns, **answers},
        {"chosen": "Why? good", "rejected": "Why? bad"},
    ]
    return write_lines(root / "rows.jsonl", rows)


def _rows_of(form: str) -> Callable[[Path], Path]:
    return lambda root: write_rows(root, ROW_SAMPLES[form])


def _described(form: str, rows: list[dict[str, Any]]) -> Callable[[Path], Path]:
    def write(root: Path) -> Path:
        write_rows(root, rows)
        text = f"name: mine\nform: {form}\nfiles: [rows.jsonl]\n"
        (root / "dataset.yaml").write_text(text, encoding="utf-8")
        return root

    return write


def _vqa(root: Path) -> Path:
    shared = {"image": "1.png", "qid": 7, "organ": "lung"}
    answers = {"Is there a mass?": "Yes", "How many?": 2, "Which side?": "left", "What?": "a CT"}
    rows = [{"question": text, "answer": answer} | shared for text, answer in answers.items()]
    return write_rows(root, rows)


def _tables(root: Path) -> Path:
    stored = [{"bytes": png(picture(number)), "path": None} for number in (1, 2)]
    rows = [
        {"prompt": f"q{number}", "chosen": "good", "rejected": "bad", "images": stored}
        for number in range(3)
    ]
    return write_parquet(root / "rows.parquet", rows)


def _phantom(root: Path) -> Path:
    root.mkdir(parents=True)
    (root / "dataset.yaml").write_text("name: mine\nform: phantom\ncases: 3\nseed: 3\n")
    return root


def _images(root: Path) -> Path:
    """Votes on images of every format."""
    (root / "images").mkdir(parents=True)
    deep = np.linspace(0, 65535, 20 * 24).astype(np.uint16).reshape(20, 24)
    float_greys = Image.fromarray(deep.astype(np.float32))
    exif = Image.Exif()
    exif[0x0112] = 6
    kinds = {"png": {}, "jpg": {"format": "JPEG", "exif": exif}, "webp": {"format": "WEBP"}}
    kinds |= {"gif": {"format": "GIF"}, "bmp": {"format": "BMP"}, "jp2": {"format": "JPEG2000"}}
    stored = {f"a.{name}": png(picture(1), **options) for name, options in kinds.items()}
    stored["deep.tif"] = png(Image.fromarray(deep), format="TIFF", exif=exif)
    stored["packed.tif"] = png(picture(2), format="TIFF", compression="tiff_lzw")
    stored["float.tif"] = png(float_greys, format="TIFF")
    stored["pages.tif"] = png(picture(1), format="TIFF", save_all=True, append_images=[picture(2)])
    stored["palette.png"] = png(picture(3).convert("P"), transparency=bytes(range(256)))
    for name, content in stored.items():
        (root / "images" / name).write_bytes(content)
    rows = [vote(name, image=f"images/{name}") for name in stored]
    write_lines(root / "votes.jsonl", rows)
    return root


def _medical(root: Path) -> Path:
    """Votes on DICOM and NIfTI files of every compression, and on a series."""
    encodings = ("RLE", "implicit", "jp2klossless", "jpeg_ls_lossless")
    names = [f"MR_small_{encoding}.dcm" for encoding in encodings]
    names += ["SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle_2frame.dcm", "examples_palette.dcm"]
    (root / "images").mkdir(parents=True)
    for name in names:
        shutil.copy(DICOM / name, root / "images")
    write_series(root / "series", [1, 2], PixelSpacing=[1, 2])
    volume = nibabel.Nifti1Image(np.arange(60, dtype=np.int16).reshape(3, 4, 5), np.eye(4))
    for name in ("1.nii", "2.nii.gz"):
        nibabel.save(volume, root / "images" / name)
        names.append(name)
    paths = [f"images/{name}" for name in names] + ["series"]
    write_lines(root / "votes.jsonl", [vote(path, image=path) for path in paths])
    (root / "dataset.json").write_text('{"image_conversion": "minmax_mr,frames=all:2"}')
    return root


@dataclass(frozen=True)
class Corpus:
    """What is mutated and how it is read.

    Attributes:
        write: writes it below a folder; returns what is read.
        mutated: the ends of names of its files that are mutated.
        described: the name in `data/` by which it is read.
    """

    write: Callable[[Path], Path]
    mutated: tuple[str, ...] = (".jsonl", ".json", ".parquet", ".yaml")
    described: str | None = None

    def read(self, path: Path) -> None:
        """Reads it as `medrm data audit` and `medrm score` do, images included.

        Raises:
            MedrmError: it is refused.
        """
        stored_findings(str(path))
        if path.is_file():
            files = input_files(str(path))
            count_rows(files)
            list(read_rows(files))
        examine(read_set(str(path), described=self.described).cases)


class VqaCorpus(Corpus):
    """Questions with one reference answer each, of which pairs are built."""

    def read(self, path: Path) -> None:
        """Builds pairs and reads them as a set.

        Raises:
            MedrmError: it is refused.
        """
        output = path.parent.parent / "pairs"
        build_cases(BuildRequest(str(path), output, "vqa", overwrite_output_dir=True))
        examine(read_set(str(output)).cases)


CORPORA = {
    "votes": Corpus(_votes),
    "layout": Corpus(_layout),
    "preferences": Corpus(_preferences),
    **{form: Corpus(_rows_of(form)) for form in ROW_SAMPLES if form != "preferences"},
    "graded_pairs": Corpus(_described("graded_pairs", PUBLIC_ROWS["helpsteer3"])),
    "critic_pairs": Corpus(_described("critic_pairs", PUBLIC_ROWS["llava_critic"])),
    "vqa": VqaCorpus(_vqa),
    "phantom": Corpus(_phantom),
    "pairs": Corpus(SAMPLES["vl_rewardbench"], described="vl_rewardbench"),
    "best_of": Corpus(SAMPLES["rewardbench_2"], described="rewardbench_2"),
    "criteria": Corpus(SAMPLES["healthbench_meta"], described="healthbench_meta"),
    "rated_axes": Corpus(real_pocqi),
    "tables": Corpus(_tables),
    "medical": Corpus(_medical, (".dcm", ".nii", ".gz")),
    "images": Corpus(_images, (".png", ".jpg", ".webp", ".gif", ".bmp", ".jp2", ".tif")),
}
"""One for each format of `medrm.data.case_set.FORMATS`, and some that all formats share."""
