#!/bin/bash
# Gets what the bench needs and does not build: Litestream, and matplotlib for the plots. Below a folder, nothing elsewhere; what is there already stays.
# usage: prepare.sh folder
set -euo pipefail
requirements="$(dirname "$(realpath "$0")")/requirements.txt"
cmp -s "$requirements" "$1/ready" && exit
rm -rf "$1"
mkdir -p "$(dirname "$1")"
/usr/bin/python3 -m venv "$1"
"$1/bin/pip" install --quiet --disable-pip-version-check --no-compile --only-binary :all: -r "$requirements"
"$1/bin/litestream" version
cp "$requirements" "$1/ready"
