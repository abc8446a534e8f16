"""Notes in a replicated database, as a Flask application.

    REPLICA=fs:///var/backup/notes flask --app flask_app run
"""

import functools
import os
import sqlite3
from urllib.parse import quote

import flask
import replvfs

# When the module is imported: before the first connection, and also before a server forks, which does no harm as long as no database is open.
replvfs.load()
DATABASE = f"file:{quote(os.environ.get('DATABASE', 'notes.db'))}?vfs=replvfs&replica={quote(os.environ['REPLICA'])}"

app = flask.Flask(__name__)


def connect():
    db = sqlite3.connect(DATABASE, uri=True, timeout=10, check_same_thread=False)
    db.execute("PRAGMA journal_mode=WAL")
    return db


@functools.cache
def keep_open():
    """Whoever closes the last connection of a process waits for the upload of what is left. So one stays open, opened by the first request: in the
    worker, not in the server that forks it."""
    db = connect()
    db.execute("CREATE TABLE IF NOT EXISTS note (id INTEGER PRIMARY KEY, text TEXT NOT NULL)")
    return db


@app.before_request
def open_database():
    keep_open()
    flask.g.db = connect()


@app.teardown_request
def close_database(_error):
    if "db" in flask.g:
        flask.g.db.close()


@app.get("/notes")
def list_notes():
    return [{"id": row[0], "text": row[1]} for row in flask.g.db.execute("SELECT id, text FROM note ORDER BY id")]


@app.post("/notes")
def add_note():
    with flask.g.db as db:
        row = db.execute("INSERT INTO note (text) VALUES (?)", (flask.request.form["text"],))
    return {"id": row.lastrowid}, 201


@app.post("/flush")
def flush():
    """For a backup at a moment that somebody chooses. Without it commits are uploaded within `flush_interval`."""
    return {"txid": int(flask.g.db.execute("PRAGMA replvfs_flush").fetchone()[0])}
