#!/bin/bash
# Notes in a replicated database, with the sqlite3 shell: written, lost, restored, and read as they were.
# usage: notes.sh libreplvfs.so fs:///folder/for/the/replica
set -euo pipefail
extension="$1" replica="$2"

# .load goes first: a connection that is there before the extension is not replicated. ATTACH in place of .open, since a shell whose .open fails goes on with
# a database in memory, whatever -bail says.
sqlite3 -bail <<SQL
.load $extension
ATTACH 'file:notes.db?vfs=replvfs&replica=$replica' AS app;
PRAGMA app.journal_mode=WAL;
CREATE TABLE app.note (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
INSERT INTO note (text) VALUES ('buy milk');
INSERT INTO note (text) VALUES ('the milk is sour');
PRAGMA app.replvfs_flush;
SQL

# Lost, and there again: an open restores a database that is missing.
rm notes.db
sqlite3 -bail <<SQL
.load $extension
ATTACH 'file:notes.db?vfs=replvfs&replica=$replica' AS app;
SELECT 'restored: ' || group_concat(text, ', ') FROM note;
SQL

# As it was, without restoring it.
sqlite3 -bail <<SQL
.load $extension
.open 'file:notes.db?vfs=replvfs-remote&replica=$replica'
PRAGMA replvfs_txid=2;
SELECT 'before: ' || group_concat(text, ', ') FROM note;
SQL
