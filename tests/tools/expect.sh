# What the tests of the command share; to be sourced with the test's arguments, DOUBLEP DATA: a folder for work that goes
# away at the end, and expect. `failed` is 1 once an expectation was not met.
set -u
doublep=$1
model=$2/needle-12m.q8_0.gguf
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
failed=0

# expect STATUS PATTERN ARGUMENT...: the exit status, and an extended regular expression that stdout or stderr has.
expect() {
    status=$1 pattern=$2
    shift 2
    "$doublep" "$@" >"$work/out" 2>"$work/err" </dev/null
    got=$?
    if [ "$got" -ne "$status" ]; then
        echo "FAIL: doublep $* ended with status $got, must be $status"
        cat "$work/err"
        failed=1
    elif ! cat "$work/out" "$work/err" | grep -Eq -e "$pattern"; then
        echo "FAIL: doublep $* printed no '$pattern' but:"
        cat "$work/out" "$work/err"
        failed=1
    fi
}
