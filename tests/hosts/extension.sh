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
echo "-- check-config, and programs that name no VFS"
cat >replvfs.toml <<TOML
[[database]]
path = "chosen/*.db"
replica = "fs://$work/chosen-replicas/{name}"
TOML
mkdir chosen
export REPLVFS_DEFAULT=1 REPLVFS_CONFIG="$work/replvfs.toml"
"$replvfs" check-config --database chosen/app.db --store
if "$replvfs" check-config --database plain.db; then fail "plain.db is said to be replicated"; fi
sqlite3 -bail :memory: <<SQL
.load $library
.open chosen/app.db
PRAGMA journal_mode=WAL;
CREATE TABLE t(v);
INSERT INTO t VALUES ('chosen');
ATTACH 'plain.db' AS plain;
CREATE TABLE plain.t(v);
PRAGMA main.replvfs_flush;
SQL
/usr/bin/python3 - "$library" <<'PYTHON'
import sqlite3, sys
loader = sqlite3.connect(":memory:")
loader.enable_load_extension(True)
loader.load_extension(sys.argv[1])
db = sqlite3.connect("chosen/app.db")
db.execute("INSERT INTO t VALUES ('by Python')")
db.commit()
db.execute("PRAGMA replvfs_flush").fetchall()
PYTHON
"$replvfs" restore "fs://$work/chosen-replicas/app.db" chosen-restored.db
[ "$(sqlite3 chosen-restored.db 'SELECT group_concat(v) FROM t')" = "chosen,by Python" ] || fail "the chosen database is not in its replica"
[ -z "$(find . -name 'plain.db-replvfs*')" ] || fail "plain.db is not passed through"
unset REPLVFS_DEFAULT REPLVFS_CONFIG

echo "-- a host with an older SQLite is told so"
# A table that ends where that of 3.31 did, before memory that may not be read: nothing behind its end may be looked at.
cat >old.c <<'C'
#include <dlfcn.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
enum { LIBVERSION_NUMBER = 67, MPRINTF = 69, LENGTH = 240 };
static int version(void) { return 3031001; }
static char *print(const char *format, ...) {
    char *text = malloc(1000);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, 1000, format, arguments);
    va_end(arguments);
    return text;
}
int main(int count, char **values) {
    long page = sysconf(_SC_PAGESIZE);
    char *pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    void **table = (void **)(pages + page) - LENGTH;
    void *library = dlopen(values[1], RTLD_NOW);
    int (*init)(void *, char **, void *);
    char *error = NULL;
    mprotect(pages + page, page, PROT_NONE);
    table[LIBVERSION_NUMBER] = (void *)version;
    table[MPRINTF] = (void *)print;
    *(void **)&init = library ? dlsym(library, "sqlite3_replvfs_init") : NULL;
    if (count != 2 || !init) return 2;
    if (init(NULL, &error, table) != 1 || !error) return 3;
    puts(error);
    return strstr(error, "needs SQLite 3.32.0 or newer; this program has 3.31.1") ? 0 : 4;
}
C
cc -o old old.c -ldl
./old "$library" || fail "an older SQLite is not refused as it should be: $?"
echo "extension: passed"
