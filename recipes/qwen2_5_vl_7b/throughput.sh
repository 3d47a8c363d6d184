#!/usr/bin/env bash
# Measures medrm at the shape of Qwen2.5-VL-7B with random weights on one GPU, in at most eight
# minutes, and writes the tables to throughput.md of a folder:
#
#   bash recipes/qwen2_5_vl_7b/throughput.sh FOLDER
#
# Further options go to `medrm throughput`. This tries the script on a CPU:
#
#   bash recipes/qwen2_5_vl_7b/throughput.sh FOLDER --shape tiny --device cpu --dtype float32 \
#     --image_tokens 4 --rounds 1
set -euo pipefail

folder=${1:?give the folder for throughput.md}
options=("${@:2}")
mkdir -p "$folder"
rm -f "$folder"/throughput*.md

measure() {
  # Each part has its time; what is measured until then stays.
  timeout --signal=INT --kill-after=10 150 medrm throughput --shape qwen2_5_vl_7b \
    --dtype bfloat16 --cases 4 --rounds 5 --output "$folder/throughput_$1.md" "${@:2}" \
    ${options[@]+"${options[@]}"} || echo "part $1 was not finished" >&2
}

measure 1 --tasks train --answers 2
measure 2 --tasks train --answers 2 --gradient_checkpointing
measure 3 --tasks score --answers 2 4 8

for part in "$folder"/throughput_?.md; do
  cat "$part"
  echo
done > "$folder/throughput.md"
cat "$folder/throughput.md"
