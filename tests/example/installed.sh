#!/bin/sh
# installed.sh BUILD SOURCE CC: installs the library into a temporary folder, builds the README's example against it with
# pkg-config alone, as a user would, and runs it; and checks that the README shows that very example.
set -eu
build=$1 source=$2 cc=$3
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT

awk '/^```c$/ { on = 1; next } /^```$/ { on = 0 } on' "$source/README.md" >"$dir/decode.c"
cmp "$dir/decode.c" "$source/tests/example/decode.c"

DESTDIR="$dir" ninja -C "$build" install >"$dir/log" || { cat "$dir/log"; exit 1; } # not `meson`: PATH may hold another version
pc=$(find "$dir" -name doublep.pc)
export PKG_CONFIG_PATH="${pc%/*}" PKG_CONFIG_SYSROOT_DIR="$dir"
# shellcheck disable=SC2046 # the flags are meant to be split
"$cc" -Wall -Wextra -Werror "$dir/decode.c" $(pkg-config --cflags --libs doublep) -o "$dir/decode"
lib=$(dirname "$(find "$dir" -name 'libdoublep.so.0')")
LD_LIBRARY_PATH="$lib" "$dir/decode" | grep -E '^read [0-9.]+ % of the cache$'

# Only the public interface is exported.
if nm -D --defined-only "$lib/libdoublep.so.0" | awk '{ print $3 }' | grep -v '^dp_'; then
    echo "symbols beyond dp_ are exported" >&2
    exit 1
fi
