"""The one list of the benchmark's organs, and the names by which people write them."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from medrm.errors import ConfigError
from medrm.files import fits

_SYNONYMS: dict[str, tuple[str, ...]] = {
    "abdomen": ("abdominal",),
    "brain": ("head", "cranial"),
    "breast": ("mammary",),
    "chest": ("thorax", "thoracic"),
    "eye": ("eyes", "ocular", "retina"),
    "foot": ("feet",),
    "gastrointestinal_tract": ("gi", "gi_tract", "gastrointestinal", "digestive_tract"),
    "heart": ("cardiac",),
    "lower_limb": ("leg", "lower_extremity", "lower_limbs"),
    "lung": ("lungs", "pulmonary"),
    "oral_cavity": ("mouth", "oral"),
    "pelvic_cavity": ("pelvis", "pelvic"),
    "upper_limb": ("arm", "upper_extremity", "upper_limbs"),
}
ORGANS = tuple(_SYNONYMS)
"""The thirteen organs of Med-RewardBench, as its files are named."""

_CANONICAL = {name: organ for organ in ORGANS for name in (organ, *_SYNONYMS[organ])}


def canonical_organ(name: str) -> str:
    """Returns the benchmark's name of an organ; any other organ keeps the name it was given.

    >>> canonical_organ("GI tract"), canonical_organ("Lower Limb"), canonical_organ("Knee joint")
    ('gastrointestinal_tract', 'lower_limb', 'Knee joint')
    """
    written = re.sub(r"[\s\-]+", "_", name.strip().lower())
    return _CANONICAL.get(written, name.strip())


def read_department_map(path: Path) -> dict[str, str]:
    """Returns the user's mapping of organ to department, from a YAML or JSON file.

    Raises:
        ConfigError: no such file, or no mapping of names to names.
    """
    wanted = "give a YAML or JSON file that maps organs to departments, such as `brain: neurology`"
    if not path.is_file():
        raise ConfigError(f"department_map {path}: there is no such file; {wanted}.")
    try:
        departments = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML as well
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"department_map {path} cannot be parsed ({error}); {wanted}.") from error
    if not fits(departments, dict[str, str]):
        raise ConfigError(f"department_map {path} holds no mapping of names to names; {wanted}.")
    return {canonical_organ(organ): department for organ, department in departments.items()}
