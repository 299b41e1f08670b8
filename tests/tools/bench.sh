#!/bin/sh
# The benchmark as a user meets it: figures, JSON, picture, recordings, messages. Usage: bench.sh DOUBLEP DATA
. "$(dirname "$0")/expect.sh"

# Bad arguments.
expect 2 'shape is "7x2x64"' bench --shape 7x2x64
expect 2 'shape is "8x2x63"' bench --shape 8x2x63
expect 2 'shape is "8x2x64y"' bench --shape 8x2x64y
expect 2 'context is "12Q"|context is "12"' bench --context 12Q
expect 2 'at least 256' bench --context 64
expect 2 'rising' bench --context 8K,4K
expect 2 'kv is "q4"' bench --kv q4
expect 2 'no method' bench --methods dense,magic
expect 2 'steps is "0"' bench --steps 0
expect 2 'needs --svg' bench --from "$work/x.json"
expect 2 'needs --record' run --model "$model" --prompt x --record-layers 1
expect 1 'layers are 0 to 5' run --model "$model" --prompt x --record "$work/t" --record-layers 6
expect 1 'No such file' bench --buffer 8 --trace "$work/missing"
expect 1 'not a recording' bench --buffer 8 --trace "$model"
expect 1 'MiB are free' bench --buffer 8 --context 64M --layers 4096

# One run of everything: library and baseline methods, JSON and picture.
small='--shape 4x2x32 --steps 4 --layers 2 --growth 3 --buffer 8'
# shellcheck disable=SC2086
expect 0 '^double-p ' bench $small --context 2K,4K --methods dense,double-p,double-p:epsilon=0,double-p:borrowed=1,quest \
    --json "$work/b.json" --svg "$work/b.svg"
grep -q 'synthetic' "$work/out" || { echo "FAIL: the table does not say that its inputs are synthetic"; failed=1; }
for key in machine stream_gbps gather_gbps counters methods name ms_median ms_p10 ms_p90 bytes gbps limit_share stages \
    scores_ms select_ms scan_ms gather_ms merge_ms rel_error build ms tokens_per_s append ms_per_token worst_step_ms \
    worst_undisturbed_step_ms worst_append_ms worst_attention_ms reserve_ms preempted_steps sweep; do
    grep -q "\"$key\":" "$work/b.json" || { echo "FAIL: no \"$key\" in the JSON"; failed=1; }
done
if command -v gnuplot >/dev/null; then
    grep -q '</svg>' "$work/b.svg" || { echo "FAIL: no picture"; failed=1; }
    "$doublep" bench --from "$work/b.json" --svg "$work/again.svg"
    cmp -s "$work/b.svg" "$work/again.svg" || { echo "FAIL: the picture from the JSON differs"; failed=1; }
    echo '{}' >"$work/empty.json"
    expect 1 'no "sweep"' bench --from "$work/empty.json" --svg "$work/again.svg"
fi

# Recording and replay. Double-P with all clusters kept and refined is dense attention.
awk 'BEGIN { for (i = 0; i < 700; i++) printf "%d ", i % 97 }' >"$work/prompt"
expect 0 '' run --model "$model" --prompt-file "$work/prompt" -n 4 --record "$work/t" --record-layers 1,4
expect 0 'recorded: 1 document, [1-5] steps' bench --buffer 8 --trace "$work/t" --context 1K --steps 4 --layers 2 --growth 9
expect 0 'tiled from several' bench --buffer 8 --trace "$work/t,$work/t" --context 2K --steps 4 --layers 2 --growth 1 \
    --methods dense,double-p:p1=1:epsilon=0:min_context=0 --json "$work/t.json"
awk '/"rel_error":/ { n++; sub(/,/, "", $2); if ($2 + 0 > 0.001) bad = 1 } END { exit n < 2 || bad }' "$work/t.json" ||
    { echo "FAIL: Double-P without approximation is not dense attention:"; grep rel_error "$work/t.json"; failed=1; }
expect 1 'fewer than the context' bench --buffer 8 --trace "$work/t" --context 64K
expect 1 'shape must have' bench --buffer 8 --trace "$work/t" --shape 8x2x128 --context 1K
head -c 100000 "$work/t" >"$work/cut"
expect 1 'cut off' bench --buffer 8 --trace "$work/cut"

[ "$failed" -eq 0 ] && echo "all as expected"
exit "$failed"
