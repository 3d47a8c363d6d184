"""The one list of the benchmark's organs, and the names by which people write them."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from medrm.errors import ConfigError

ORGANS = (
    "abdomen",
    "brain",
    "breast",
    "chest",
    "eye",
    "foot",
    "gastrointestinal_tract",
    "heart",
    "lower_limb",
    "lung",
    "oral_cavity",
    "pelvic_cavity",
    "upper_limb",
)
"""The thirteen organs of Med-RewardBench, as its files are named."""

_ALIASES = {
    "abdominal": "abdomen",
    "head": "brain",
    "cranial": "brain",
    "mammary": "breast",
    "thorax": "chest",
    "thoracic": "chest",
    "eyes": "eye",
    "ocular": "eye",
    "retina": "eye",
    "feet": "foot",
    "gi": "gastrointestinal_tract",
    "gi_tract": "gastrointestinal_tract",
    "gastrointestinal": "gastrointestinal_tract",
    "digestive_tract": "gastrointestinal_tract",
    "cardiac": "heart",
    "leg": "lower_limb",
    "lower_extremity": "lower_limb",
    "lower_limbs": "lower_limb",
    "lungs": "lung",
    "pulmonary": "lung",
    "mouth": "oral_cavity",
    "oral": "oral_cavity",
    "pelvis": "pelvic_cavity",
    "pelvic": "pelvic_cavity",
    "arm": "upper_limb",
    "upper_extremity": "upper_limb",
    "upper_limbs": "upper_limb",
}


def canonical_organ(name: str) -> str:
    """Returns the benchmark's name of an organ; any other organ keeps the name it was given.

    >>> canonical_organ("GI tract"), canonical_organ("Lower Limb"), canonical_organ("Knee joint")
    ('gastrointestinal_tract', 'lower_limb', 'Knee joint')
    """
    plain = re.sub(r"[\s\-]+", "_", name.strip().lower())
    plain = _ALIASES.get(plain, plain)
    return plain if plain in ORGANS else name.strip()


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
    if not isinstance(departments, dict) or not all(
        isinstance(name, str) for pair in departments.items() for name in pair
    ):
        raise ConfigError(f"department_map {path} holds no mapping of names to names; {wanted}.")
    return {canonical_organ(organ): department for organ, department in departments.items()}
