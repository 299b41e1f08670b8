#!/usr/bin/env bash
# run.sh TARGET CORPUS SECONDS: what the corpus has, then new inputs for some seconds; none of them is kept but one
# that makes the target fail, in the current folder.
set -eu
new=$(mktemp -d)
trap 'rm -rf "$new"' EXIT
"$1" -seed=1 -max_total_time="$3" -rss_limit_mb=4096 -timeout=20 -print_final_stats=1 "$new" "$2"
