#!/bin/sh
# The command as a user meets it: answers, exit statuses, messages. Usage: cli.sh DOUBLEP DATA
. "$(dirname "$0")/expect.sh"

# Bad arguments.
expect 2 'Usage'
expect 2 'not a command' answer
expect 0 'run.*compare|compare' help
expect 0 '^doublep [0-9]+\.[0-9]+\.[0-9]+$' --version
expect 0 'epsilon' run --help
expect 2 'model FILE is missing' run --prompt x
expect 2 'prompt-file is needed' run --model "$model"
expect 2 'prompt-file is needed' run --model "$model" --prompt x --prompt-file y
expect 2 'epsilon is "2"' run --model "$model" --prompt x --epsilon 2
expect 2 'epsilon is "nan"' run --model "$model" --prompt x --epsilon nan
expect 2 'epsilon does not go with --p2' run --model "$model" --prompt x --epsilon 0.1 --p2 0.5
expect 2 'p2 is 0.9' run --model "$model" --prompt x --p1 0.5 --p2 0.9
expect 2 'attention is "sparse"' run --model "$model" --prompt x --attention sparse
expect 2 'kv is "q4"' run --model "$model" --prompt x --kv q4
expect 2 'threads is "0"' run --model "$model" --prompt x --threads 0
expect 2 'threads is "two"' run --model "$model" --prompt x --threads two
expect 2 'predict is "-1"' run --model "$model" --prompt x -n -1
expect 2 'chunk is "0"' run --model "$model" --prompt x --chunk 0
expect 2 'temperature is "-1"' run --model "$model" --prompt x --temperature=-1
expect 2 'unrecognized option' run --model "$model" --prompt x --no-such-option
expect 2 'not an option' run --model "$model" --prompt x stray
expect 2 'prompts FILE is missing' compare --model "$model"
expect 2 'leave --attention out' compare --model "$model" --prompts x --attention dense

# Prompts that cannot be.
expect 2 'prompt is empty' run --model "$model" --prompt ''
expect 2 'prompt is empty' run --model "$model" --prompt-file -
expect 2 'No such file' run --model "$model" --prompt-file "$work/missing"
awk 'BEGIN { for (i = 0; i < 140000; i++) printf "%d ", i % 10 }' >"$work/long"
expect 2 'more than the model.s context of 131072' run --model "$model" --prompt-file "$work/long"

# Models that are none.
expect 1 'No such file' run --model "$work/missing" --prompt x
head -c 6000000 "$model" >"$work/short.gguf"
expect 1 'short.gguf' run --model "$work/short.gguf" --prompt x
echo 'not a model at all, but long enough for a header' >"$work/text.gguf"
expect 1 'text.gguf' run --model "$work/text.gguf" --prompt x
expect 1 'short.gguf' compare --model "$work/short.gguf" --prompts "$2/ruler_32k.jsonl.gz"

# Files of prompts.
expect 1 'no prompt is nothing:0' compare --model "$model" --prompts "$2/ruler_32k.jsonl.gz" --select nothing:0
echo '{"task": "t"' >"$work/bad.jsonl"
expect 1 'bad.jsonl:1' compare --model "$model" --prompts "$work/bad.jsonl"
echo '{"task": "t", "id": 0, "context": "a"}' >"$work/bad.jsonl"
expect 1 'bad.jsonl:1: needs' compare --model "$model" --prompts "$work/bad.jsonl"
head -c 1000 "$2/ruler_32k.jsonl.gz" >"$work/cut.jsonl.gz"
expect 1 'cut.jsonl.gz' compare --model "$model" --prompts "$work/cut.jsonl.gz"

# Answers: the same from an argument, a file, a compressed file and stdin; from any number of threads and chunk size.
prompt='def main(argc, argv):'
printf '%s' "$prompt" >"$work/prompt"
gzip -k "$work/prompt"
"$doublep" run --model "$model" --prompt "$prompt" -n 12 >"$work/want" 2>/dev/null || failed=1
[ -s "$work/want" ] || { echo "FAIL: no answer"; failed=1; }
same() {
    "$doublep" run --model "$model" -n 12 "$@" >"$work/got" 2>/dev/null
    cmp -s "$work/want" "$work/got" || { echo "FAIL: run $* answers differently"; failed=1; }
}
same --prompt-file "$work/prompt"
same --prompt-file "$work/prompt.gz"
same --prompt-file - <"$work/prompt"
same --prompt "$prompt" --threads 1
same --prompt "$prompt" --chunk 3
same --prompt "$prompt" --attention dense
same --prompt "$prompt" --kv f32

# A prompt that was read once, whole or in part.
same --prompt "$prompt" --save-prefix "$work/prefix"
same --prompt "$prompt" --prefix "$work/prefix"
expect 0 '^prefill  0 tokens' run --model "$model" -n 1 --both --prompt "$prompt" --prefix "$work/prefix"
expect 0 '^prefill  [1-9]' run --model "$model" -n 1 --prompt "$prompt and then" --prefix "$work/prefix"
expect 1 'differs from it at token' run --model "$model" --prompt "x$prompt and then" --prefix "$work/prefix"
expect 1 'the prompt only' run --model "$model" --prompt "def" --prefix "$work/prefix"
expect 1 'type is 2 in the file, not 1' run --model "$model" --prompt "$prompt" --prefix "$work/prefix" --kv f16
expect 1 'no snapshot' run --model "$model" --prompt "$prompt" --prefix "$model"
expect 2 'without --prefix' run --model "$model" --prompt "$prompt" --prefix "$work/prefix" --record "$work/trace"

# A seed repeats its text.
"$doublep" run --model "$model" --prompt "$prompt" -n 12 --temperature 1 --seed 7 >"$work/want" 2>/dev/null
same --prompt "$prompt" --temperature 1 --seed 7

# JSON: one object with the promised members, on stdout alone.
for key in text prefill_tokens prefill_ms index_ms decode_tokens decode_ms_per_token attention_ms_per_token \
    attention_bytes_per_token dense_bytes_per_token prefill_flops_per_s token_ids attention isa threads; do
    expect 0 "^  \"$key\": " run --model "$model" --prompt "$prompt" -n 2 --json
done
expect 0 '"methods": \[' run --model "$model" --prompt "$prompt" -n 2 --json --both
expect 0 '"version": ' info --json
expect 0 '^ISA ' info

# Starting llama.cpp's programs: any program will do to see what is set up for it.
expect 2 'program is missing' llama
expect 2 'program is missing' llama --plugin /dev/null --
expect 1 'no plugin /nowhere' llama --plugin /nowhere -- env
expect 1 '/dev/null is no backend of ggml' llama --plugin /dev/null -- env
expect 1 'is no backend of ggml' llama --plugin "$model" -- env
plugin=$work/plugin.so
printf '\177ELF ggml_backend_init' >"$plugin"
expect 1 'no program /nowhere' llama --plugin "$plugin" -- /nowhere
expect 0 "^GGML_BACKEND_PATH=$plugin\$" llama --plugin "$plugin" -- env
expect 0 "^LD_PRELOAD=$plugin\$" llama --plugin "$plugin" env
expect 3 '^$' llama --plugin "$plugin" -- sh -c 'echo; exit 3'

# A program with ggml inside: nothing could be added to it.
inside=$(mktemp)
cat "$(command -v env)" >"$inside"
printf GGML_BACKEND_PATH >>"$inside"
chmod +x "$inside"
expect 1 'has ggml linked into it' llama --plugin "$plugin" -- "$inside"
rm "$inside"

[ "$failed" -eq 0 ] && echo "all as expected"
exit "$failed"
