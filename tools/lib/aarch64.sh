# aarch64.sh: building for AArch64 on another machine, and running it there: Debian's cross compiler, qemu-user, and a
# folder of arm64 libraries (a sysroot) unpacked from Debian packages. To be sourced after common.sh.

aarch64_packages=(gcc-aarch64-linux-gnu g++-aarch64-linux-gnu qemu-user)
aarch64_libraries=(libc6 libc6-dev linux-libc-dev libgcc-s1 libstdc++6 libgomp1 libdnnl2 libdnnl-dev libhwloc15
    libhwloc-dev libudev1 libcap2 libjansson4 libjansson-dev libpcre2-8-0 libpcre2-dev zlib1g zlib1g-dev check libsubunit0
    libsubunit-dev)

# make_sysroot FOLDER: the libraries in FOLDER, and FOLDER.cross, which tells meson where that is. Apt works on lists of its
# own, beside the system's: no foreign architecture is added there, nothing is installed.
make_sysroot() (
    folder=$1
    [ ! -f "$folder.cross" ] || exit 0
    scratch=$(mktemp -d) || exit
    trap 'rm -rf "$scratch"' EXIT
    mkdir -p "$folder" "$scratch/lists/partial" "$scratch/archives/partial" && : >"$scratch/status" || exit
    folder=$(cd "$folder" && pwd)
    apt=(apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State::lists="$scratch/lists"
        -o Dir::State::status="$scratch/status" -o Dir::Cache="$scratch" -o Debug::NoLocking=1 -o APT::Sandbox::User=root)
    say "fetching arm64 libraries into $folder/"
    "${apt[@]}" update >&2 && cd "$scratch" && "${apt[@]}" download "${aarch64_libraries[@]}" >&2 || exit
    for package in *.deb; do
        dpkg -x "$package" "$folder" || exit
    done
    find "$folder" -type l -lname '/*' -printf '%p %l\n' | while read -r link target; do
        ln -sfr "$folder$target" "$link" || exit
    done || exit
    printf "[constants]\nsysroot = '%s'\n" "$folder" >"$folder.cross"
)

# prepare_aarch64 FOLDER OPTION...: sets a build folder for AArch64 up, like configure; fails where packages cannot be had.
prepare_aarch64() {
    local folder=$1
    (need_packages "${aarch64_packages[@]}") && command -v aarch64-linux-gnu-gcc qemu-aarch64 >/dev/null &&
        make_sysroot "$folder/sysroot" || return
    if [ -f "$folder/build.ninja" ]; then
        configure "$folder" "${@:2}"
    else
        configure "$folder" --cross-file "$folder/sysroot.cross" --cross-file "$root/tools/lib/aarch64.cross" "${@:2}"
    fi
}
