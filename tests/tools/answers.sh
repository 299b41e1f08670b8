#!/bin/sh
# The main job on every ISA: the questions of 8K-token prompts, answered densely and by Double-P from one prefill. The
# answers must be equal and right, whatever the ISA, and read less than a fifth of the bytes (at 8K tokens what is always
# exact weighs four times what it does at 32K). With CHARACTERS the contexts are cut to so many, and for less than 8K
# tokens it may be a third. Usage: answers.sh DOUBLEP DATA ISA LIMIT [CHARACTERS]
set -eu
doublep=$1 data=$2 isa=$3 limit=$4 characters=${5-} saving=${5:+3}
out=$(mktemp)
prompts=$(mktemp)
trap 'rm -f "$out" "$prompts"' EXIT

if ! DOUBLEP_ISA=$isa "$doublep" info >/dev/null 2>"$out"; then
    grep -q "no $isa" "$out" && exit 77
    cat "$out"
    exit 1
fi
gzip -dc "$data/ruler_8k.jsonl.gz" | jq -c ".context |= .[:${characters:-length}]" >"$prompts"
DOUBLEP_ISA=$isa "$doublep" compare --model "$data/needle-12m.q8_0.gguf" --prompts "$prompts" \
    --limit "$limit" --json >"$out"
jq -e --argjson n "$limit" --argjson saving "${saving:-5}" '
    (.results | length == $n) and
    all(.results[]; .equal and .expected == .methods[1].text and .methods[0].attention == "dense"
        and $saving * .methods[1].attention_bytes_per_token < .methods[1].dense_bytes_per_token)' \
    "$out" || { cat "$out"; exit 1; }
