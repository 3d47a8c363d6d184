"""A pytest plugin with which torchvision's build for GPUs can be imported beside torch for CPUs.

Two of its operators are declared, none is defined; image processors need none of them. To be
loaded before transformers is:

    pip install --no-deps --target DIRECTORY torchvision timm
    PYTHONPATH=tests:DIRECTORY python -m pytest -n 0 -p families.stub -m exhaustive tests/families

with `--write-families` at the end where the results are to be kept.
"""

from __future__ import annotations

import torch

# Kept alive: the operators go with it.
LIBRARY = torch.library.Library("torchvision", "DEF")
LIBRARY.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
LIBRARY.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
