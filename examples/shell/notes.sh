#!/bin/bash
# Notes in a replicated database, with the sqlite3 shell: written, lost, restored, and read as they were.
# usage: notes.sh libreplvfs.so fs:///folder/for/the/replica
set -euo pipefail
extension="$1" replica="$2"

# .load goes before .open: a connection that is there before the extension is not replicated.
sqlite3 -bail <<SQL
.load $extension
.open 'file:notes.db?vfs=replvfs&replica=$replica'
PRAGMA journal_mode=WAL;
CREATE TABLE note (id INTEGER PRIMARY KEY, text TEXT NOT NULL);
INSERT INTO note (text) VALUES ('buy milk');
INSERT INTO note (text) VALUES ('the milk is sour');
PRAGMA replvfs_flush;
SQL

# Lost, and there again: an open restores a database that is missing.
rm notes.db
sqlite3 -bail <<SQL
.load $extension
.open 'file:notes.db?vfs=replvfs&replica=$replica'
SELECT 'restored: ' || group_concat(text, ', ') FROM note;
SQL

# As it was, without restoring it.
sqlite3 -bail <<SQL
.load $extension
.open 'file:notes.db?vfs=replvfs-remote&replica=$replica'
PRAGMA replvfs_txid=2;
SELECT 'before: ' || group_concat(text, ', ') FROM note;
SQL
