"""The named conversions by which medical images become pictures of 8 bits.

What a conversion gives never changes: golden tests hold its pixels, and another behaviour gets
another name or version. It is written `NAME`, or with what is particular to it
`NAME,frames=RULE,plane=PLANE`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from medrm.errors import ConfigError, nearest

PLANES = ("axial", "coronal", "sagittal")
"""In which a NIfTI volume is cut, as radiologists look at them."""

MOST_PICTURES = 1000
"""Of one file or folder."""

RULES = ("first", "middle", "index", "all")

BURNED_IN = "burned-in annotation"
"""The risk that something is written into the pixels, of which users are warned."""


@dataclass(frozen=True, slots=True)
class FrameRule:
    """Which frames of a file, or slices of a volume or a series, become pictures.

    Attributes:
        kind: `first`; `middle` (of an even number the later one); `index` (the frame `number`,
            from 1, or the last one where there are fewer); `all` (at most `number`).
        number: as above.
    """

    kind: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.kind}:{self.number}" if self.kind in ("index", "all") else self.kind

    def chosen(self, count: int) -> list[int]:
        """Returns which of `count` frames are taken, from 0.

        Of more than are to be taken it is `round(i / number * (count - 1))` for i from 1 to number,
        as the notebook of MedGemma 1.5 samples a CT.

        >>> FrameRule("middle").chosen(4), FrameRule("index", 9).chosen(4)
        ([2], [3])
        >>> FrameRule("all", 3).chosen(3), FrameRule("all", 3).chosen(10)
        ([0, 1, 2], [3, 6, 9])
        """
        if self.kind == "all":
            if count <= self.number:
                return list(range(count))
            return [round(i / self.number * (count - 1)) for i in range(1, self.number + 1)]
        index = {"first": 0, "middle": count // 2, "index": self.number - 1}[self.kind]
        return [min(index, count - 1)]


@dataclass(frozen=True, slots=True)
class Conversion:
    """How the values of an image become shades of 8 bits.

    Attributes:
        name: by which it is asked for.
        meaning: what it does.
        source: where its numbers stand.
        windows: ranges in Hounsfield units, each black at its first and white at its second number:
            one for greys, three for red, green and blue. None: not by Hounsfield units.
        spread: without windows: `file`, by the window that the file states; `picture`, from the
            least to the greatest value of each picture; `acquisition`, of the whole file or series.
        frames: which frames are taken where nothing else is asked for.
        version: counted up when the same file would become other pixels.
    """

    name: str
    meaning: str
    source: str
    windows: tuple[tuple[float, float], ...] = ()
    spread: Literal["file", "picture", "acquisition"] = "picture"
    frames: FrameRule = field(default=FrameRule("middle"))
    version: int = 1


_PRESETS = "window presets of radiology viewers (width / level in HU)"


def _ct(name: str, width: float, level: float) -> Conversion:
    """Returns a conversion by one window of Hounsfield units."""
    window = (level - width / 2, level + width / 2)
    meaning = f"CT by the window {width:g} / {level:g}: {window[0]:g} HU black, {window[1]:g} white"
    return Conversion(f"ct_{name}", meaning, _PRESETS, (window,))


CONVERSIONS = {
    conversion.name: conversion
    for conversion in (
        Conversion(
            "file_window",
            "as the file says: its VOI LUT, else its first window, else from the least to the "
            "greatest value of the picture",
            "DICOM PS3.3 C.11.2; NIfTI cal_min and cal_max",
            spread="file",
        ),
        Conversion(
            "minmax",
            "from the least to the greatest value of each picture",
            "the stretch that deep greys of other formats get",
        ),
        Conversion(
            "minmax_mr",
            "MR from the least to the greatest value of the whole file, volume or series",
            "MedGemma 1.5, how MRI is prepared",
            spread="acquisition",
        ),
        _ct("abdomen", 400, 40),
        _ct("angiography", 600, 170),
        _ct("bone", 2000, 500),
        _ct("brain", 70, 30),
        _ct("liver", 160, 60),
        _ct("lung", 1600, -600),
        _ct("mediastinum", 500, 50),
        _ct("soft_tissue", 350, 50),
        _ct("stroke", 30, 30),
        Conversion(
            "medgemma-1.5-ct",
            "CT as MedGemma 1.5 reads it: red is -1024 to 1024 HU, green -135 to 215, blue 0 to "
            "80, rounded; at most 85 slices",
            "github.com/Google-Health/medgemma, notebooks/high_dimensional_ct_hugging_face.ipynb",
            ((-1024, 1024), (-135, 215), (0, 80)),
            frames=FrameRule("all", 85),
        ),
    )
}
"""Name to conversion. One from outside the package is added by putting an entry into this dict."""


@dataclass(frozen=True, slots=True)
class ImageConversion:
    """A conversion as it is asked for.

    Attributes:
        conversion: of the values.
        frames: which frames or slices become pictures.
        plane: in which volumes are cut.
    """

    conversion: Conversion
    frames: FrameRule
    plane: str = "axial"

    def __str__(self) -> str:
        """Returns its one spelling, which contracts and caches keep: defaults are left out."""
        version = self.conversion.version
        name = self.conversion.name + (f"@{version}" if version > 1 else "")
        frames = f",frames={self.frames}" if self.frames != self.conversion.frames else ""
        return name + frames + (f",plane={self.plane}" if self.plane != "axial" else "")


def parse_conversion(text: str) -> ImageConversion:
    """Returns the conversion that a text names.

    >>> str(parse_conversion("ct_lung, plane=coronal, frames=middle"))
    'ct_lung,plane=coronal'

    Raises:
        ConfigError: an unknown name, frame rule or plane.
    """
    name, *settings = (part.strip() for part in text.split(","))
    plain, _, version = name.partition("@")
    conversion = CONVERSIONS.get(plain)
    if conversion is None or version not in ("", str(conversion.version)):
        raise ConfigError(
            f"image_conversion {text!r} is not known; accepted: {', '.join(CONVERSIONS)}, each "
            f"also with ,frames=RULE or ,plane=PLANE (data/README.md).{nearest(plain, CONVERSIONS)}"
        )
    frames, plane = conversion.frames, "axial"
    for setting in settings:
        key, _, value = setting.partition("=")
        if key == "frames":
            frames = _frame_rule(value)
        elif key == "plane" and value in PLANES:
            plane = value
        else:
            raise ConfigError(
                f"image_conversion {text!r}: {setting!r} is not accepted; give frames=RULE or "
                f"plane= and one of {', '.join(PLANES)}."
            )
    return ImageConversion(conversion, frames, plane)


def agreed_conversion(asked: str | None, trained: str | None, model: str) -> ImageConversion | None:
    """Returns the conversion by which a model reads medical images; None: nothing names one.

    Args:
        asked: by the user; None: nothing.
        trained: by which those of its training were converted; None: there were none.
        model: its name, for the message.

    Raises:
        ConfigError: another one is asked for than the model was trained on.
    """
    named = None if trained is None else parse_conversion(trained)
    if asked is None:
        return named
    conversion = parse_conversion(asked)
    if named is not None and named != conversion:
        raise ConfigError(
            f"image_conversion {conversion}: {model} was trained on medical images by {named}; a "
            "reward of pictures that were made otherwise is another reward. Leave it out, or give "
            f"{named}."
        )
    return conversion


def _frame_rule(text: str) -> FrameRule:
    kind, colon, number = text.partition(":")
    takes_number = kind in ("index", "all")
    if kind in RULES and takes_number == bool(colon) and (not colon or number.isdecimal()):
        rule = FrameRule(kind, int(number[:6]) if colon else 1)
        if 1 <= rule.number <= MOST_PICTURES or (kind == "index" and rule.number):
            return rule
    raise ConfigError(
        f"image_conversion: frames={text} is not accepted; give first, middle, index:N (from 1) or "
        f"all:N, N from 1 to {MOST_PICTURES}."
    )
