#!/bin/bash
# The C library as it is installed: include/replvfs.h, lib/libreplvfs.a, lib/pkgconfig/replvfs.pc.
# usage: c-library.sh prefix [what cargo is to be told, such as --no-default-features]
#
# What cargo builds exports the functions of every library inside (zstd's, BLAKE3's, crc-fast's, AWS-LC's) and Rust's own, which would meet
# those of the program or of another Rust library in it. Here all of it becomes one object that exports what replvfs.h declares, and nothing else.
set -euo pipefail
here="$(dirname "$(realpath "$0")")"
root="$(realpath "$here/../..")"
mkdir -p "$1"
prefix="$(realpath "$1")"
shift

header="$root/replicator/capi/include/replvfs.h"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$root"

cargo rustc --release --locked --color never -p replvfs-c "$@" -- --print native-static-libs 2> >(tee "$work/cargo.log" >&2)
libs="$(sed -n 's/^note: native-static-libs: //p' "$work/cargo.log")"
[ -n "$libs" ] || { echo "rustc did not say which libraries it needs" >&2; exit 1; }
# Which SQLite is for the program to say.
libs="$(tr ' ' '\n' <<<"$libs" | grep -vx -e -lsqlite3 | paste -sd' ')"

target="$(cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')"
archive="$target/release/libreplvfs.a"
cc -E -P "$header" | grep -oE 'replvfs_[a-z_]+ *\(' | tr -d ' (' | sort -u >"$work/declared"

mapfile -t undefined < <(sed 's/^/--undefined=/' "$work/declared")
ld -r "${undefined[@]}" -o "$work/all.o" "$archive"
# .llvmbc: the bitcode of Rust's own library, which nobody reads any more.
objcopy --strip-debug --remove-section=.llvmbc --remove-section=.llvmcmd --keep-global-symbols="$work/declared" "$work/all.o" "$work/replvfs.o"
rm -f "$work/libreplvfs.a"
ar rcsD "$work/libreplvfs.a" "$work/replvfs.o"

nm --defined-only --extern-only --format=just-symbols "$work/replvfs.o" | sort >"$work/exported"
diff "$work/declared" "$work/exported" >&2 || { echo "replvfs.h declares (<) something else than the library exports (>)" >&2; exit 1; }

version="$(cargo pkgid --locked -p replvfs-c | sed 's/.*[#@]//')"
url="$(sed -n 's/^repository = "\(.*\)"/\1/p' Cargo.toml | head -1)"
install -D -m 644 "$header" "$prefix/include/replvfs.h"
install -D -m 644 "$work/libreplvfs.a" "$prefix/lib/libreplvfs.a"
mkdir -p "$prefix/lib/pkgconfig"
# Wherever it is copied to.
sed -e 's|@prefix@|${pcfiledir}/../..|' -e "s|@version@|$version|" -e "s|@url@|$url|" -e "s|@libs@|$libs|" \
    replicator/capi/replvfs.pc.in >"$prefix/lib/pkgconfig/replvfs.pc"
echo "$prefix: libreplvfs.a $(stat -c %s "$prefix/lib/libreplvfs.a") bytes, needs $libs and SQLite"
