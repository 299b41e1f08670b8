# common.sh: what the scripts in tools/ share: finding what is missing, installing it, building. To be sourced by bash.

set -euo pipefail
new_packages=
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() {
    printf '==> %s\n' "$*" >&2
}

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 1
}

as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "packages are missing and there is no sudo; run as root: $*"
    fi
}

installed() {
    [ "$(dpkg-query -W -f='${db:Status-Abbrev}' "$1" 2>/dev/null)" = 'ii ' ]
}

# Installs those of the named Debian packages that are missing. Without apt, hopes for the best: meson will tell.
need_packages() {
    local package missing=()
    if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
        say "this is not a Debian system; these packages are needed under its own names: $*"
        return
    fi
    for package in "$@"; do
        installed "$package" || missing+=("$package")
    done
    [ ${#missing[@]} -eq 0 ] && return
    say "installing: ${missing[*]}"
    new_packages=1
    # The lists of packages are fetched only where they do not know what is wanted, or what they know is gone.
    if ! apt-cache show "${missing[@]}" >/dev/null 2>&1 ||
        ! as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2; then
        as_root apt-get update >&2
        as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}" >&2
    fi
}

build_packages=(gcc libc6-dev pkg-config meson ninja-build libdnnl-dev libhwloc-dev libjansson-dev libpcre2-dev zlib1g-dev)
test_packages=(g++ check clang libclang-rt-14-dev libomp-dev gnuplot-nox gzip jq valgrind)

# The system's meson where it is, so that another one in PATH (of a Python environment, say) makes no difference.
meson() {
    if [ -x /usr/bin/meson ]; then
        /usr/bin/meson "$@"
    else
        command meson "$@"
    fi
}

# configure FOLDER OPTION...: sets a build folder up, or changes the options of the one that is there, and finds what
# this script has installed.
configure() {
    local folder=$1
    shift
    [ -z "$new_packages" ] || rm -f "$folder"/{build.ninja,meson-private/coredata.dat} # it remembers what was not there
    if [ -f "$folder/build.ninja" ]; then
        meson configure "$folder" "$@" >&2
    else
        meson setup "$folder" "$root" "$@" >&2
    fi
}

# build FOLDER: everything, what only tests and benchmarks need included.
build() {
    ninja -C "$1" all meson-test-prereq meson-benchmark-prereq >&2
}
