#!/bin/bash
# The hosts "sqlite3 shell" of tests/hosts/table.py, which tells what each command is to do.
# usage: host.sh path/to/sqlite3 write|resume|read|refuse NAME
set -euo pipefail
sqlite3="$1" command="$2" name="$3"

transactions() {
    for ((n = 0; n < $1; n++)); do
        echo "INSERT INTO t(v) SELECT hex(randomblob(50)) FROM (WITH RECURSIVE n(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM n LIMIT 20) SELECT n FROM n);"
    done
}
flush() { printf '%s\n' '.output flushed.tmp' 'PRAGMA replvfs_flush;' '.output stdout' '.system echo "flushed $(cat flushed.tmp)"'; }
show() { echo "SELECT 'rows ' || count(*) || ' ' || sum(id) FROM t;"; }

script() {
    printf '%s\n' '.bail on' '.log stderr' ".load $EXTENSION" ".open '$name'"
    case "$command" in
    write)
        printf '%s\n' "SELECT 'sqlite ' || sqlite_version();" '.output wal.tmp' 'PRAGMA journal_mode=WAL;' '.output stdout' 'CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT);'
        transactions 5
        flush
        transactions 3
        echo '.print waiting'
        # Its input stays open, so it waits.
        sleep 1000
        ;;
    resume)
        show
        transactions 1
        flush
        ;;
    read) show ;;
    refuse) echo 'PRAGMA schema_version;' ;;
    esac
}

if [ "$command" = refuse ]; then
    code=0
    script | "$sqlite3" :memory: >refused.tmp 2>&1 || code=$?
    cat refused.tmp
    # Above 128 it was a signal. A shell whose .open fails says so, and goes on with a database in memory, whatever .bail says.
    if [ "$code" -gt 128 ] || ! grep -q '^Error: ' refused.tmp; then exit 1; fi
    echo "refused: $(grep -m 1 '^Error: ' refused.tmp)"
else
    # A buffer for each line, also where the output is a pipe.
    script | stdbuf -oL "$sqlite3" :memory:
fi
