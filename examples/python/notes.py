"""Notes in a replicated database: python3 notes.py fs:///folder/for/the/replica [a new note]

With the replica at s3://bucket/prefix?region=… it is the same. `pip install` the wheel that replicator/packaging/wheel.py makes.
"""

import sqlite3
import sys
from urllib.parse import quote

import replvfs

replica, *texts = sys.argv[1:]

# Before the database is opened. It is for all connections of the process.
replvfs.load()
# "&" within a parameter has to be %26, and so on: quote() does it.
db = sqlite3.connect(f"file:notes.db?vfs=replvfs&replica={quote(replica)}", uri=True)
db.execute("PRAGMA journal_mode=WAL")
db.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
for text in texts:
    with db:
        db.execute("INSERT INTO note (text) VALUES (?)", (text,))

# Uploading goes on in the background, and the last close waits for it (`close_timeout`). This waits, and tells the transaction's number.
(txid,) = db.execute("PRAGMA replvfs_flush").fetchone()
print("transaction", txid, "is in the replica")
for row in db.execute("SELECT id, text FROM note ORDER BY id"):
    print(*row)
db.close()
