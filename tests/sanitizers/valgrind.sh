#!/bin/bash
# SQLite's shell with the extension, under valgrind: write, flush, checkpoint, leave WAL mode, look back.
# usage: valgrind.sh path/to/libreplvfs.so
set -euo pipefail
here="$(dirname "$(realpath "$0")")"
extension="$(realpath "$1")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

cat >script.sql <<SQL
.load ${extension%.so}
.open 'file:$work/app.db?vfs=replvfs&replica=fs://$work/replica'
PRAGMA journal_mode=WAL;
CREATE TABLE note(text); INSERT INTO note VALUES (randomblob(5000)); UPDATE note SET text = 'first';
PRAGMA replvfs_flush;
PRAGMA wal_checkpoint(TRUNCATE);
PRAGMA journal_mode=DELETE; INSERT INTO note VALUES ('second'); PRAGMA replvfs_flush;
.open 'file:$work/app.db?vfs=replvfs-remote&replica=fs://$work/replica'
SELECT 'there: ' || group_concat(text, ', ') FROM note;
SQL
source "$here/memcheck.sh"
"${memcheck[@]}" sqlite3 -batch <script.sql >out || { cat out; echo "FAILED" >&2; exit 1; }
cat out
grep -qx 'there: first, second' out || { echo "FAILED: what is in the replica" >&2; exit 1; }
echo "valgrind: passed"
