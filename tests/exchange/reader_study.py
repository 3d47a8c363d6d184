"""A reader study as a hospital keeps it: an Excel sheet in German, with images beside it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import openpyxl
from PIL import Image

from medrm.data.phantom.phantom_set import draw_case, draw_picture

READERS = ("Dr. Müller", "Dr. Weiß", "Dr. Öztürk")
HEADER = (
    *("Fall-Nr.", "Patient", "Bild", "Frage", "Antwort Modell 1", "Antwort Modell 2"),
    *("Links stand", "Leser", "Genauigkeit", "Gesamturteil", "Sicherheit", "Lesezeit (s)"),
    *("Bemerkung", "Station"),
)
SIDES = {"A": ("links", "rechts"), "B": ("rechts", "links")}


def write_study(
    folder: Path, cases: int = 100, rows: int = 120, medical: tuple[Path, ...] = (), seed: int = 7
) -> Path:
    """Writes `lesestudie.xlsx` and its images; the first cases are read by two readers.

    Args:
        folder: to write.
        cases: how many there are.
        rows: comparisons, of which the last ones are second readings.
        medical: DICOM files that the first cases show in place of their pictures.
        seed: another one gives other cases.
    """
    rng = np.random.default_rng(5)
    (folder / "bilder").mkdir(parents=True)
    book = openpyxl.Workbook()
    book.active.title = "Lesungen"
    book.active.append(["Lesestudie KI-Befunde", "", "Stand 03/2026"])
    book.active.append([])
    book.active.append(HEADER)
    for number in range(rows):
        index = number if number < cases else number - cases
        book.active.append(_row(folder, (seed, index), number // cases, rng, medical))
    path = folder / "lesestudie.xlsx"
    book.save(path)
    return path


def _row(
    folder: Path,
    case_of: tuple[int, int],
    reading: int,
    rng: np.random.Generator,
    medical: tuple[Path, ...],
) -> list[object]:
    seed, index = case_of
    readings, picture = draw_picture(seed, index)
    case = draw_case(seed, index, readings)
    name = f"bild{index:03}.png"
    if index < len(medical):
        name = f"bild{index:03}.dcm"
        shutil.copy(medical[index], folder / "bilder" / name)
    else:
        Image.fromarray(picture.pixels).save(folder / "bilder" / name)
    left = rng.choice(["Modell 1", "Modell 2"])
    reader = (index + reading) % 3
    drawn = [*case.votes.values()][reading]
    votes = []
    for dimension in ("accuracy", "overall"):
        sides = SIDES.get(str(drawn[dimension]), ("=", "="))
        votes.append(sides[left != "Modell 1"])
    if index == 4:
        votes[1] = "beide unbrauchbar"
    return [
        *(index + 1, f"P{index // 2:03}", f"bilder\\{name}", case.question, *case.answers),
        *(
            left,
            READERS[reader],
            *votes,
            "sicher" if index % 3 else "unsicher",
            round(20 + index / 7, 1),
        ),
        *("unscharf" if index == 3 else None, "Radiologie 2"),
    ]
