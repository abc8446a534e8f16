#!/bin/bash
# The extension and the command line together: written by the sqlite3 shell and by Python, listed and restored by `replvfs`.
# usage: extension.sh libreplvfs.so replvfs
set -euo pipefail
library="$(realpath "$1")"
replvfs="$(realpath "$2")"
work="$(mktemp -d)"
trap 'rm -rf "$work"' EXIT
cd "$work"

fail() { echo "FAILED: $*" >&2; exit 1; }

echo "-- sqlite3 $(sqlite3 --version | cut -d' ' -f1) writes"
uri="file:$work/app.db?vfs=replvfs&replica=fs://$work/replica"
sqlite3 -bail :memory: >shell.out <<SQL
.load $library
.open '$uri'
PRAGMA journal_mode=WAL;
CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);
INSERT INTO t(v) VALUES ('one'), ('two');
DELETE FROM t WHERE id = 1;
PRAGMA replvfs_flush;
SQL
sqlite3 app.db .dump >written.sql
rm -f app.db app.db-wal app.db-shm

echo "-- replvfs lists and restores"
"$replvfs" log "fs://$work/replica"
"$replvfs" restore "fs://$work/replica" restored.db
sqlite3 restored.db .dump | diff written.sql - || fail "the restored database is another one"
"$replvfs" restore "fs://$work/replica" earlier.db --txid 2
[ "$(sqlite3 earlier.db 'SELECT group_concat(v) FROM t')" = "one,two" ] || fail "transaction 2 is not what it was"
if "$replvfs" restore "fs://$work/replica" earlier.db 2>refused.txt; then fail "an existing file was overwritten"; fi
cat refused.txt

echo "-- sqlite3 and replvfs read it without restoring it"
remote="file:app.db?vfs=replvfs-remote&replica=fs://$work/replica"
sqlite3 -bail :memory: >remote.out <<SQL
.load $library
.open '$remote'
SELECT group_concat(v) FROM t;
PRAGMA replvfs_txid=2;
SELECT group_concat(v) FROM t;
SQL
[ "$(tr '\n' ' ' <remote.out)" = "two 2 one,two " ] || fail "what is read in the replica: $(cat remote.out)"
[ "$("$replvfs" sql "fs://$work/replica" 'SELECT group_concat(v) AS v FROM t' --txid 2 --json)" = '[{"v":"one,two"}]' ] || fail "replvfs sql"

echo "-- Python with SQLite $(/usr/bin/python3 -c 'import sqlite3; print(sqlite3.sqlite_version)') writes"
/usr/bin/python3 - "$library" "file:$work/py.db?vfs=replvfs&replica=fs://$work/py-replica" <<'PYTHON'
import sqlite3, sys
library, uri = sys.argv[1:]
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(library)
db = sqlite3.connect(uri, uri=True)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE t(v)")
db.executemany("INSERT INTO t VALUES (?)", [(n * n,) for n in range(100)])
db.commit()
db.execute("PRAGMA replvfs_flush").fetchall()
PYTHON
"$replvfs" restore "fs://$work/py-replica" py-restored.db
[ "$(sqlite3 py-restored.db 'SELECT count(*), sum(v) FROM t')" = "100|328350" ] || fail "Python's rows are not there"
[ "$(sqlite3 py-restored.db 'PRAGMA integrity_check')" = "ok" ] || fail "integrity_check"
echo "extension: passed"
