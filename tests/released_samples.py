"""Benchmarks in exactly the form in which they are released, with texts and images of our own."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def png(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (28, 28), (shade % 256, 255 - shade % 256, (7 * shade) % 256)).save(
        buffer, "PNG"
    )
    return buffer.getvalue()


def write_parquet(path: Path, rows: Sequence[dict[str, Any]], features: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    about = {"huggingface": json.dumps({"info": {"features": features}})}
    pq.write_table(pa.Table.from_pylist(list(rows)).replace_schema_metadata(about), path)


TEXT = {"dtype": "string", "_type": "Value"}
TEXTS = {"feature": TEXT, "_type": "List"}
WHOLE = {"dtype": "int64", "_type": "Value"}


def vl_rewardbench(root: Path) -> Path:
    """Ids of each group, one id twice, a prompt with an image mark, both rankings."""
    rankings = {
        "RLAIF-12": [0, 1],
        "RLHF-V-3": [1, 0],
        "hallucination_pair-7": [1, 0],
        "mathverse_9": [0, 1],
        "mmmu_pro_test_Art_1": [1, 0],
        "wildvision-battle-4": [0, 1],
    }
    rows = [
        {
            "id": case_id,
            "query": f"<image>\nWhat is number {number}?",
            "response": [f"first {number}", f"the second {number}"],
            "image": {"bytes": png(number), "path": f"{number}.png"},
            "human_ranking": ranking,
            "models": ["model one", "model two"],
            "judge": "",
            "rationale": "",
            "query_source": "made up",
            "ground_truth": "",
        }
        for number, (case_id, ranking) in enumerate([*rankings.items(), ("mathverse_9", [1, 0])])
    ]
    features = dict.fromkeys(rows[0], TEXT) | {
        "response": TEXTS,
        "models": TEXTS,
        "human_ranking": {"feature": WHOLE, "_type": "List"},
        "image": {"_type": "Image"},
    }
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows, features)
    return root


def multimodal_rewardbench(root: Path, text: str = "What is shown?", images: bool = True) -> Path:
    """`data/all_data.json` and `data/images/`, as the authors' script leaves them."""
    rows = [
        ("pairs_1", "safety", "Output2"),
        ("other_2", "safety", "Output1"),
        ("mathvista_3", "reasoning", "Output1"),
        ("EMMA-Coding_4", "reasoning", "Output2"),
        ("nocaps_5", "general", "Output2"),
    ]
    content = []
    for number, (case_id, category, better) in enumerate(rows):
        image = f"images/set/{number}.png"
        if images:
            (root / "data" / "images" / "set").mkdir(parents=True, exist_ok=True)
            (root / "data" / image).write_bytes(png(number))
        content.append(
            {
                "ID": case_id,
                "Text": text,
                "Image": image,
                "Output1": f"one {number}",
                "Output2": f"two {number}",
                "Better": better,
                "Category": category,
            }
        )
    (root / "data").mkdir(parents=True, exist_ok=True)
    (root / "data" / "all_data.json").write_text(json.dumps(content), encoding="utf-8")
    return root


def mm_rlhf_rewardbench(root: Path) -> Path:
    """Three prompts with two, one and two pairs; the last one on a video of 40 frames."""
    pairs = [
        ("1_2", {"image": "mcq/1.png"}),
        ("1_2", {"image": "mcq/1.png"}),
        ("3_4", {"image": "safety/3.jpg"}),
        ("clip_5", {"video": "video/clip"}),
        ("clip_5", {"video": "video/clip"}),
    ]
    rows = [
        {
            "id": case_id,
            **media,
            "prompt": "What happens?",
            "chosen": f"good {number}",
            "rejected": f"not so good {number}",
            "chosen_reason": "right",
            "rejected_reason": "wrong",
        }
        for number, (case_id, media) in enumerate(pairs)
    ]
    (root / "images" / "clip").mkdir(parents=True)
    (root / "images" / "1.png").write_bytes(png(1))
    (root / "images" / "3.jpg").write_bytes(png(3))
    for frame in range(40):
        (root / "images" / "clip" / f"c01_{frame + 1:04d}.jpeg").write_bytes(png(100 + frame))
    write_lines(root / "mm_reward_bench.jsonl", rows)
    return root


def rewardbench_2(root: Path) -> Path:
    """Two best-of-four subsets and three prompts of Ties, of which two come in both forms."""
    cases = [
        ("0", "Factuality", 1, 3),
        ("1", "Factuality", 1, 3),
        ("2", "Math", 1, 3),
        ("ref:0", "Ties", 1, 3),
        ("tied:0", "Ties", 3, 2),
        ("ref:1", "Ties", 1, 2),
        ("tied:1", "Ties", 2, 3),
        ("tied:2", "Ties", 2, 1),
    ]
    rows = [
        {
            "id": case_id,
            "prompt": f"Question {case_id}?",
            "chosen": [f"right {number} of {case_id}" for number in range(right)],
            "rejected": [f"the wrong {number} of {case_id}" for number in range(wrong)],
            "num_correct": right,
            "num_incorrect": wrong,
            "total_completions": right + wrong,
            "models": ["made up"] * (right + wrong),
            "subset": subset,
            "additional_metadata": {"category": None},
        }
        for case_id, subset, right, wrong in cases
    ]
    features = dict.fromkeys(("id", "prompt", "subset"), TEXT)
    features |= dict.fromkeys(("chosen", "rejected", "models"), TEXTS)
    features |= dict.fromkeys(("num_correct", "num_incorrect", "total_completions"), WHOLE)
    features["additional_metadata"] = {"category": TEXT}
    order = {name: features[name] for name in rows[0]}
    for row in rows:
        row["additional_metadata"] = {"category": "none"}
    write_parquet(root / "data" / "test-00000-of-00001.parquet", rows, order)
    return root


def healthbench_meta(root: Path) -> Path:
    """Two conversations; physicians agree, are divided two to one, and are divided evenly."""
    rated = [
        ("p1", "r1", "hedging_any-a", [True, True]),
        ("p1", "r1", "hedging_any-b", [False, False]),
        ("p1", "r2", "hedging_any-a", [True, False, True]),
        ("p2", "r3", "global_health_c", [True, False]),
        ("p2", "r3", "hedging_any-b", [True, True]),
        ("p2", "r4", "global_health_c", [False, False]),
    ]
    rows = [
        {
            "prompt_id": prompt,
            "completion_id": response,
            "prompt": [
                {"role": "user", "content": "I feel dizzy."},
                {"role": "assistant", "content": "Since when?"},
                {"role": "user", "content": f"Since today, {prompt}."},
            ],
            "completion": f"Please rest, {response}.",
            "rubric": f"Asks for more, {category}.",
            "category": f"cluster:{category}",
            "binary_labels": labels,
            "anonymized_physician_ids": [f"physician {n}" for n in range(len(labels))],
            "canary": "none",
        }
        for prompt, response, category, labels in rated
    ]
    write_lines(root / "2025-05-07-06-14-12_oss_meta_eval.jsonl", rows)
    return root


def multimodal_rewardbench_2(root: Path) -> Path:
    """Prompts with no, one and two images; letters of either case."""
    prompts = [
        ("Which is larger?", []),
        ("<image_0> What is this?", [1]),
        ("<image_0> Or <image_1>?", [2, 3]),
        ("Why? <image_0>", [4]),
    ]
    rows = [
        {
            "pair_id": f"pair-{number}",
            "prompt_text": text,
            "prompt_images": [{"bytes": png(shade), "path": None} for shade in shades],
            "response_a_text": f"one {number}",
            "response_a_images": [],
            "response_b_text": f"the two {number}",
            "response_b_images": [],
            "chosen": "ABab"[number],
            "prompt_source": ("vstar", "blink")[number % 2],
            "response_a_model": "model one",
            "response_b_model": "model two",
            "human_annotations": "{}",
            "prompt_metadata": "{}",
        }
        for number, (text, shades) in enumerate(prompts)
    ]
    images = {"feature": {"_type": "Image"}, "_type": "List"}
    features = dict.fromkeys(rows[0], TEXT)
    features |= {name: images for name in features if name.endswith("_images")}
    write_parquet(root / "reasoning" / "test-00000-of-00001.parquet", rows, features)
    return root


def real_pocqi(root: Path) -> Path:
    """Two comparisons of one question by two raters, whose slots differ, and one with citations."""
    systems = ("openevidence", "gpt-5.5")
    questions = [
        {"question_id": name, "question_text": f"What of {name}?", "specialty": "Cardiology"}
        for name in ("q1", "q2")
    ]
    answers = [
        {"question_id": name, "provider_key": key, "answer_markdown": f"{key} on {name}"}
        for name in ("q1", "q2")
        for key in systems
    ]
    rated = [
        ("q1", systems, "qa_text_only", {"accuracy": "strongly_a", "completeness": "tie"}),
        ("q1", systems[::-1], "qa_text_only", {"accuracy": "slightly_a", "completeness": "tie"}),
        ("q2", systems, "qa_text_citations", {"accuracy": "slightly_b"}),
    ]
    ratings = [
        {
            "question_id": question,
            "axis": axis,
            "choice": choice,
            "slot_a_provider": slots[0],
            "slot_b_provider": slots[1],
            "render_mode": mode,
        }
        for question, slots, mode, choices in rated
        for axis, choice in choices.items()
    ]
    tables = {"questions": questions, "answers": answers, "ratings": ratings}
    for name, rows in tables.items():
        write_parquet(root / f"{name}.parquet", rows, dict.fromkeys(rows[0], TEXT))
    return root


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def as_snapshot(root: Path, cache: Path, commit: str) -> Path:
    """Lays the files out as a download from the hub does: links into a folder of blobs."""
    snapshot = cache / "snapshots" / commit
    (cache / "blobs").mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in root.rglob("*") if path.is_file())):
        link = snapshot / file.relative_to(root)
        link.parent.mkdir(parents=True, exist_ok=True)
        file.rename(cache / "blobs" / str(number))
        link.symlink_to(cache / "blobs" / str(number))
    return snapshot


SAMPLES: dict[str, Callable[[Path], Path]] = {
    "vl_rewardbench": vl_rewardbench,
    "multimodal_rewardbench": multimodal_rewardbench,
    "mm_rlhf_rewardbench": mm_rlhf_rewardbench,
    "rewardbench_2": rewardbench_2,
    "healthbench_meta": healthbench_meta,
    "multimodal_rewardbench_2": multimodal_rewardbench_2,
}
"""What writes the sample of each benchmark below a folder."""
