#!/bin/sh
# Every file and every test that README.md names exists.
cd "$(dirname "$0")" || exit
file= bad=0 named=0
for word in $(grep '^|' README.md | grep -o '`[^`]*`' | tr -d '`'); do
    case $word in
    */*)
        file=$word
        [ -f "$file" ] || { echo "no file tests/$file"; bad=1; } ;;
    *)
        grep -q "START_TEST($word)" "$file" || { echo "no test $word in tests/$file"; bad=1; } ;;
    esac
    named=$((named + 1))
done
[ "$named" -gt 50 ] || { echo "the table was not found"; bad=1; }
exit $bad
