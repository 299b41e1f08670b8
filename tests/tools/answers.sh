#!/bin/sh
# The main job on every ISA: the questions of 8K-token prompts, answered densely and by Double-P from one prefill. The
# answers must be equal and right, whatever the ISA, and read less than a fifth of the bytes (at 8K tokens what is always
# exact weighs four times what it does at 32K). Usage: answers.sh DOUBLEP DATA ISA LIMIT
set -eu
doublep=$1 data=$2 isa=$3 limit=$4
out=$(mktemp)
trap 'rm -f "$out"' EXIT

if ! DOUBLEP_ISA=$isa "$doublep" info >/dev/null 2>"$out"; then
    grep -q "no $isa" "$out" && exit 77
    cat "$out"
    exit 1
fi
DOUBLEP_ISA=$isa "$doublep" compare --model "$data/needle-12m.q8_0.gguf" --prompts "$data/ruler_8k.jsonl.gz" \
    --limit "$limit" --json >"$out"
jq -e --argjson n "$limit" '
    (.results | length == $n) and
    all(.results[]; .equal and .expected == .methods[1].text and .methods[0].attention == "dense"
        and 5 * .methods[1].attention_bytes_per_token < .methods[1].dense_bytes_per_token)' \
    "$out" || { cat "$out"; exit 1; }
