/*
 * Writes a database through replvfs, asks how far its replication is, restores it as it was, and reads its past.
 *
 *     notes <folder>      makes notes.db, a replica, and restored.db in that folder
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <replvfs.h>
#include <sqlite3.h>

static void fail(const char *what, const char *why)
{
    fprintf(stderr, "notes: %s: %s\n", what, why ? why : "no reason is given");
    exit(1);
}

/* For functions of replvfs: the text is ours to free, and this is the end of the program. */
static void expect_ok(const char *what, int code, char *error)
{
    if (code != REPLVFS_OK)
        fail(what, error);
}

static void check(sqlite3 *db, const char *what, int code)
{
    if (code != SQLITE_OK)
        fail(what, sqlite3_errmsg(db));
}

static void run(sqlite3 *db, const char *sql)
{
    check(db, sql, sqlite3_exec(db, sql, NULL, NULL, NULL));
}

/* The first column of the first row, to be freed with sqlite3_free(). */
static char *first(sqlite3 *db, const char *sql)
{
    sqlite3_stmt *statement = NULL;
    char *text = NULL;
    check(db, sql, sqlite3_prepare_v2(db, sql, -1, &statement, NULL));
    if (sqlite3_step(statement) == SQLITE_ROW)
        text = sqlite3_mprintf("%s", (const char *)sqlite3_column_text(statement, 0));
    check(db, sql, sqlite3_finalize(statement));
    if (text == NULL)
        fail(sql, "there is no row");
    return text;
}

static void show(sqlite3 *db, const char *label, const char *sql)
{
    char *text = first(db, sql);
    printf("%s: %s\n", label, text);
    sqlite3_free(text);
}

static sqlite3 *open_uri(const char *uri)
{
    sqlite3 *db = NULL;
    check(db, uri, sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL));
    return db;
}

static sqlite3 *open_replicated(const char *path, const char *replica)
{
    char *uri = sqlite3_mprintf("file:%s?vfs=replvfs&replica=%s", path, replica);
    sqlite3 *db = open_uri(uri);
    sqlite3_free(uri);
    return db;
}

/* Writes two notes, and tells the number of the transaction between them. */
static int64_t write_notes(const char *path, const char *replica)
{
    sqlite3 *db = open_replicated(path, replica);
    char *error = NULL, *status, *txid;
    int64_t before;

    run(db, "PRAGMA journal_mode=WAL");
    run(db, "CREATE TABLE note(text)");
    run(db, "INSERT INTO note VALUES ('buy milk')");
    txid = first(db, "PRAGMA replvfs_txid");
    before = strtoll(txid, NULL, 10);
    sqlite3_free(txid);
    run(db, "INSERT INTO note VALUES ('the milk is sour')");

    expect_ok("replvfs_flush", replvfs_flush(path, &error), error);
    status = replvfs_status_json(path);
    if (status == NULL)
        fail("replvfs_status_json", "the database is open, and it gives nothing");
    printf("status: %s\n", status);
    replvfs_free(status);

    check(db, "sqlite3_close", sqlite3_close(db));
    return before;
}

/* Reads the replica where it is. */
static void read_past(const char *replica, int64_t txid)
{
    char *uri = sqlite3_mprintf("file:notes.db?vfs=replvfs-remote&replica=%s", replica);
    sqlite3 *db = open_uri(uri);
    char *back = sqlite3_mprintf("PRAGMA replvfs_txid=%lld", (long long)txid);

    sqlite3_free(uri);
    show(db, "now", "SELECT group_concat(text, ', ') FROM note");
    run(db, back);
    sqlite3_free(back);
    show(db, "before", "SELECT group_concat(text, ', ') FROM note");
    check(db, "sqlite3_close", sqlite3_close(db));
}

static void restore(const char *replica, const char *path, int64_t txid)
{
    char *error = NULL;
    uint64_t restored = 0;
    sqlite3 *db = NULL;

    expect_ok("replvfs_restore",
              replvfs_restore(replica, path, NULL, txid, REPLVFS_RESTORE_VERIFY, &restored, &error), error);
    printf("restored: transaction %" PRIu64 "\n", restored);
    /* Without replvfs: it is a database as any other. */
    check(db, path, sqlite3_open_v2(path, &db, SQLITE_OPEN_READONLY, NULL));
    show(db, "restored", "SELECT group_concat(text, ', ') FROM note");
    check(db, "sqlite3_close", sqlite3_close(db));
}

int main(int argc, char **argv)
{
    char *error = NULL, *path, *replica, *restored;
    int64_t before;

    if (argc != 2 || argv[1][0] != '/') {
        fprintf(stderr, "usage: notes /absolute/folder\n");
        return 2;
    }
    path = sqlite3_mprintf("%s/notes.db", argv[1]);
    replica = sqlite3_mprintf("fs://%s/replica", argv[1]);
    restored = sqlite3_mprintf("%s/restored.db", argv[1]);

    printf("replvfs %s, SQLite %s\n", replvfs_version(), sqlite3_libversion());
    expect_ok("replvfs_register", replvfs_register(&error), error);
    before = write_notes(path, replica);
    /* At the end, when connections may have been closed before the store had answered. */
    expect_ok("replvfs_shutdown", replvfs_shutdown(30000, &error), error);
    read_past(replica, before);
    restore(replica, restored, before);

    sqlite3_free(path);
    sqlite3_free(replica);
    sqlite3_free(restored);
    return 0;
}
