from django.core.management.base import BaseCommand
from django.db import connection, transaction

from notes.models import Note


class Command(BaseCommand):
    help = "Adds a note, waits until it is in the replica, and lists all of them."

    def add_arguments(self, parser):
        parser.add_argument("text")

    def handle(self, text, **options):
        with transaction.atomic():
            Note.objects.create(text=text)
        with connection.cursor() as cursor:
            cursor.execute("PRAGMA replvfs_flush")
            self.stdout.write(f"transaction {cursor.fetchone()[0]} is in the replica")
        for note in Note.objects.order_by("id"):
            self.stdout.write(f"{note.id} {note.text}")
