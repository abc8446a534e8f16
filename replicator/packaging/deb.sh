#!/bin/bash
# A Debian package of everything: the program, the extension, the C library, manual pages, completions.
# usage: deb.sh folder
#
# The extension is installed as replvfs.so, which `.load replvfs` finds: as libreplvfs.so it would be what `cc -lreplvfs` takes.
set -euo pipefail
here="$(dirname "$(realpath "$0")")"
root="$(realpath "$here/../..")"
mkdir -p "$1"
out="$(realpath "$1")"
stage="$(mktemp -d)"
trap 'rm -rf "$stage"' EXIT
cd "$root"

cargo build --release --locked -p replvfs-extension
cargo build --release --locked -p replvfs-cli
"$here/c-library.sh" "$stage/usr"
release="$(cargo metadata --format-version 1 --no-deps --locked | sed 's/.*"target_directory":"\([^"]*\)".*/\1/')/release"
version="$(cargo pkgid --locked -p replvfs-cli | sed 's/.*[#@]//')"
libraries="$stage/usr/lib/$(dpkg-architecture -qDEB_HOST_MULTIARCH 2>/dev/null || cc -print-multiarch)"

mkdir -p "$libraries"
mv "$stage/usr/lib/libreplvfs.a" "$stage/usr/lib/pkgconfig" "$libraries/"
sed -i -e 's|^prefix=.*|prefix=/usr|' -e "s|^libdir=.*|libdir=${libraries#"$stage"}|" "$libraries/pkgconfig/replvfs.pc"
install -m 644 "$release/libreplvfs.so" "$libraries/replvfs.so"
install -D -m 755 "$release/replvfs" "$stage/usr/bin/replvfs"
strip "$stage/usr/bin/replvfs"
strip --strip-unneeded "$libraries/replvfs.so"
"$stage/usr/bin/replvfs" man "$stage/usr/share/man/man1"
gzip -9n "$stage"/usr/share/man/man1/*
complete() { mkdir -p "$(dirname "$stage/usr/share/$2")" && "$stage/usr/bin/replvfs" completions "$1" >"$stage/usr/share/$2"; }
complete bash bash-completion/completions/replvfs
complete zsh zsh/vendor-completions/_replvfs
complete fish fish/vendor_completions.d/replvfs.fish
install -D -m 644 README.md "$stage/usr/share/doc/replvfs/README.md"
install -m 644 CHANGELOG.md replicator/FORMAT.md "$stage/usr/share/doc/replvfs/"
# Where README.md leads to.
install -D -m 644 replicator/guide/*.md -t "$stage/usr/share/doc/replvfs/replicator/guide"
install -D -m 644 examples/c/* -t "$stage/usr/share/doc/replvfs/examples"
{ cat LICENSE-MIT; printf '\n\nor, as you choose,\n\n'; cat LICENSE-APACHE; } >"$stage/usr/share/doc/replvfs/copyright"

glibc="$(objdump -T "$stage/usr/bin/replvfs" "$libraries/replvfs.so" | grep -oE 'GLIBC_[0-9.]+' | sed 's/GLIBC_//' | sort -V | tail -1)"
mkdir "$stage/DEBIAN"
cat >"$stage/DEBIAN/control" <<CONTROL
Package: replvfs
Version: $version
Architecture: $(dpkg --print-architecture)
Maintainer: The replvfs developers <replvfs@localhost>
Installed-Size: $(du -sk --exclude DEBIAN "$stage" | cut -f1)
Depends: libc6 (>= $glibc), libgcc-s1
Suggests: sqlite3, libsqlite3-dev, pkg-config
Section: database
Priority: optional
Homepage: $(sed -n 's/^repository = "\(.*\)"/\1/p' Cargo.toml | head -1)
Description: Continuous replication for SQLite, from inside its VFS
 Every commit of a database that is opened with vfs=replvfs is uploaded to an object store in the background, and can be restored later.
 .
 This package has the program replvfs, the loadable extension replvfs.so, and the C library with its header.
CONTROL
chmod -R go-w "$stage"
chmod 755 "$stage"
# Quickly: most of it is machine code, which becomes hardly smaller by more effort.
dpkg-deb --root-owner-group -Zxz -z1 --build "$stage" "$out/replvfs_${version}_$(dpkg --print-architecture).deb"
