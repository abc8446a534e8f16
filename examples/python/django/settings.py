"""The settings of a Django project whose database is replicated. Everything about replvfs is in DATABASES and the line above it.

    REPLICA=fs:///var/backup/notes python manage.py migrate
    REPLICA=fs:///var/backup/notes python manage.py add_note "buy milk"
"""

import os
from pathlib import Path
from urllib.parse import quote

import replvfs

BASE_DIR = Path(__file__).resolve().parent
DATABASE = os.environ.get("DATABASE", BASE_DIR / "notes.db")

# Settings are read before any database is opened. The signal connection_created would be too late: the connection is there then, without replvfs.
replvfs.load()
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        # Django's connections take URIs. `&` within a parameter has to be %26: quote() does it.
        "NAME": f"file:{quote(str(DATABASE))}?vfs=replvfs&replica={quote(os.environ['REPLICA'])}",
        # A connection stays with its thread. With one for each request, whoever closes the last one would wait for the upload of what is left.
        "CONN_MAX_AGE": None,
        "OPTIONS": {"timeout": 10, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"},
    }
}

SECRET_KEY = os.environ.get("SECRET_KEY", "only for trying it out")
INSTALLED_APPS = ["notes"]
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
