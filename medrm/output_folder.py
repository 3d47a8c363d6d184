"""A folder that a command makes: complete or not at all, and never over what is not its own."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from medrm.errors import ConfigError
from medrm.failures import naming
from medrm.files import atomic_folder, check_outputs


@contextmanager
def new_folder(
    output: Path, source: Path, marks: Collection[str], *, overwrite: bool
) -> Iterator[Path]:
    """Yields a draft of what `--output` names, which appears complete or not at all.

    Args:
        output: the folder.
        source: file or folder that is read.
        marks: names of files, one of which every earlier output has.
        overwrite: whether an earlier output is replaced.

    Raises:
        ConfigError: it cannot be written, is not empty and not to be replaced, holds what is no
            output of such a command, or overlaps with what is read.
    """
    check_outputs({"--output": output})
    place, read = output.resolve(), source.resolve()
    if place == read or place in read.parents or (read.is_dir() and read in place.parents):
        raise ConfigError(f"--output {output} overlaps with {source}, which is read; give another.")
    if output.is_dir() and any(output.iterdir()):
        if not overwrite:
            raise ConfigError(
                f"--output {output} is not empty. Give another folder, or --overwrite_output_dir "
                "to replace what is there."
            )
        if not any((output / name).is_file() for name in marks):
            raise ConfigError(
                f"--output {output} holds what medrm has not written, which --overwrite_output_dir "
                "does not replace. Give another folder."
            )
    with naming(output), atomic_folder(output, replace=True) as draft:
        yield draft
