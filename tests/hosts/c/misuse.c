/*
 * What replvfs.h promises, where a caller does wrong or something is in the way. C99 and C++11.
 *
 *     misuse <empty folder>
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <replvfs.h>
#include <sqlite3.h>

static int failures = 0;

#define EXPECT(condition)                                                                                    \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "misuse.c:%d: not so: %s\n", __LINE__, #condition);                              \
            failures++;                                                                                      \
        }                                                                                                    \
    } while (0)

/* The code is this one, and there is a text exactly if it is an error, with `part` in it. */
static void answers(int line, int code, int expected, char *error, const char *part)
{
    if (code != expected || (error != NULL) != (expected != REPLVFS_OK) ||
        (part != NULL && (error == NULL || strstr(error, part) == NULL))) {
        fprintf(stderr, "misuse.c:%d: %d instead of %d, with the text: %s\n", line, code, expected, error ? error : "NULL");
        failures++;
    }
    replvfs_free(error);
}

/* A text that is there already is not looked at. */
static char *unset(void)
{
    static char nonsense[] = "nonsense";
    return nonsense;
}

#define ANSWERS(call, expected, part)                                                                        \
    do {                                                                                                     \
        char *error = unset();                                                                               \
        int code = call;                                                                                     \
        answers(__LINE__, code, expected, error, part);                                                      \
    } while (0)

static char *in(const char *folder, const char *name)
{
    char *path = sqlite3_mprintf("%s/%s", folder, name);
    if (path == NULL)
        abort();
    return path;
}

static int restores(const char *replica, const char *path, const char *at, int64_t txid, unsigned int flags, char **error)
{
    return replvfs_restore(replica, path, at, txid, flags, NULL, error);
}

static void null_and_not_utf8(const char *replica, const char *path)
{
    ANSWERS(replvfs_flush(NULL, &error), REPLVFS_MISUSE, "NULL");
    ANSWERS(replvfs_wait(NULL, 1, &error), REPLVFS_MISUSE, "NULL");
    ANSWERS(restores(NULL, path, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_MISUSE, "replica");
    ANSWERS(restores(replica, NULL, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_MISUSE, "path");
    ANSWERS(restores("fs:///\xff", path, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_MISUSE, "UTF-8");
    ANSWERS(restores(replica, path, "\xc3", REPLVFS_NEWEST, 0, &error), REPLVFS_MISUSE, "UTF-8");
    EXPECT(replvfs_status_json(NULL) == NULL);
    /* A path may be anything. */
    ANSWERS(replvfs_flush("\xff\xfe", &error), REPLVFS_NOTFOUND, "open it first");
    ANSWERS(replvfs_wait("", 1, &error), REPLVFS_NOTFOUND, "open it first");
    EXPECT(replvfs_status_json("\xff") == NULL);
    /* Who does not want the text. */
    EXPECT(replvfs_flush(NULL, NULL) == REPLVFS_MISUSE);
    EXPECT(replvfs_restore(replica, NULL, NULL, 0, 0, NULL, NULL) == REPLVFS_MISUSE);
    replvfs_free(NULL);
}

static void what_cannot_be_restored(const char *folder, const char *replica, const char *path)
{
    char *nowhere = sqlite3_mprintf("fs://%s/nowhere", folder);
    char *below_a_file = in(folder, "app.db/out.db");
    uint64_t restored = 77;

    ANSWERS(restores(replica, path, NULL, REPLVFS_NEWEST, 4, &error), REPLVFS_MISUSE, "flags");
    ANSWERS(restores(replica, path, NULL, -2, 0, &error), REPLVFS_MISUSE, "-2");
    ANSWERS(restores(replica, path, "yesterday", REPLVFS_NEWEST, 0, &error), REPLVFS_MISUSE, "2026-01-02T03:04:05Z");
    ANSWERS(restores(replica, path, "2026-01-02T03:04:05Z", 1, 0, &error), REPLVFS_MISUSE, "not both");
    ANSWERS(restores(replica, path, "2001-01-02T03:04:05Z", REPLVFS_NEWEST, 0, &error), REPLVFS_NOTFOUND, "2001-01-02");
    ANSWERS(restores(replica, path, NULL, 1000, 0, &error), REPLVFS_NOTFOUND, "1000");
    ANSWERS(restores(nowhere, path, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_NOTFOUND, "nowhere");
    ANSWERS(restores("nothing of the kind", path, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_ERROR, "nothing of the kind");
    ANSWERS(restores(replica, below_a_file, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_IOERR, "app.db");
    ANSWERS(replvfs_restore(replica, path, NULL, 1000, 0, &restored, &error), REPLVFS_NOTFOUND, NULL);
    EXPECT(restored == 77);
    EXPECT(access(path, F_OK) != 0);
    sqlite3_free(nowhere);
    sqlite3_free(below_a_file);
}

static void what_can(const char *replica, const char *path)
{
    uint64_t restored = 0;
    ANSWERS(replvfs_restore(replica, path, NULL, 2, REPLVFS_RESTORE_VERIFY, &restored, &error), REPLVFS_OK, NULL);
    EXPECT(restored == 2);
    ANSWERS(restores(replica, path, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_CANTOPEN, "exists");
    ANSWERS(replvfs_restore(replica, path, "0.001 seconds ago", REPLVFS_NEWEST, REPLVFS_RESTORE_FORCE, &restored, &error),
            REPLVFS_OK, NULL);
    EXPECT(restored == 3);
}

/* All segments lose their last byte. */
static void damaged(const char *folder, const char *replica, const char *path)
{
    char *command = sqlite3_mprintf("find '%s/replica' -path '*/log/*' -type f -exec truncate -s -1 {} +", folder);
    if (command == NULL || system(command) != 0)
        failures++;
    sqlite3_free(command);
    ANSWERS(restores(replica, path, NULL, 3, REPLVFS_RESTORE_FORCE, &error), REPLVFS_CORRUPT, "log/");
}

/* The replica has faithfully what is no sound database. */
static void unsound(const char *folder)
{
    char *database = in(folder, "unsound.db"), *out = in(folder, "unsound-out.db");
    char *replica = sqlite3_mprintf("fs://%s/unsound", folder);
    char *uri = sqlite3_mprintf("file:%s?vfs=replvfs&replica=%s", database, replica);
    sqlite3 *db = NULL;

    EXPECT(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL) == SQLITE_OK);
    EXPECT(sqlite3_exec(db,
                        "PRAGMA journal_mode=WAL; CREATE TABLE t(a); INSERT INTO t VALUES (NULL); PRAGMA writable_schema=1;"
                        "UPDATE sqlite_schema SET sql = 'CREATE TABLE t(a NOT NULL)'; PRAGMA replvfs_flush",
                        NULL, NULL, NULL) == SQLITE_OK);
    EXPECT(sqlite3_close(db) == SQLITE_OK);
    ANSWERS(restores(replica, out, NULL, REPLVFS_NEWEST, REPLVFS_RESTORE_VERIFY, &error), REPLVFS_CORRUPT, "NULL value in t.a");
    EXPECT(access(out, F_OK) != 0);
    ANSWERS(restores(replica, out, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_OK, NULL);
    sqlite3_free(database);
    sqlite3_free(out);
    sqlite3_free(replica);
    sqlite3_free(uri);
}

static void *in_a_thread(void *path)
{
    long nth;
    for (nth = 0; nth < 20; nth++) {
        char *status = replvfs_status_json((const char *)path);
        EXPECT(status != NULL && status[0] == '{');
        replvfs_free(status);
        ANSWERS(replvfs_register(&error), REPLVFS_OK, NULL);
        ANSWERS(replvfs_flush((const char *)path, &error), REPLVFS_OK, NULL);
        ANSWERS(replvfs_shutdown(60000, &error), REPLVFS_OK, NULL);
    }
    return NULL;
}

static void threads(const char *path)
{
    pthread_t others[4];
    int nth;
    for (nth = 0; nth < 4; nth++)
        EXPECT(pthread_create(&others[nth], NULL, in_a_thread, (void *)path) == 0);
    for (nth = 0; nth < 4; nth++)
        EXPECT(pthread_join(others[nth], NULL) == 0);
}

/* It has nothing of its parent's, and may begin anew. */
static void in_a_child(const char *folder, const char *path)
{
    char *uri = sqlite3_mprintf("file:%s/child.db?vfs=replvfs&replica=fs://%s/child", folder, folder);
    int status = -1;
    pid_t child = fork();
    if (child == 0) {
        sqlite3 *db = NULL;
        failures = 0;
        ANSWERS(replvfs_flush(path, &error), REPLVFS_NOTFOUND, "open it first");
        ANSWERS(replvfs_shutdown(0, &error), REPLVFS_OK, NULL);
        ANSWERS(replvfs_register(&error), REPLVFS_OK, NULL);
        EXPECT(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL) == SQLITE_OK);
        EXPECT(sqlite3_exec(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(a)", NULL, NULL, NULL) == SQLITE_OK);
        ANSWERS(replvfs_shutdown(60000, &error), REPLVFS_OK, NULL);
        EXPECT(sqlite3_close(db) == SQLITE_OK);
        _exit(failures != 0);
    }
    EXPECT(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    sqlite3_free(uri);
}

/* The store goes away behind the database's back. */
static void not_confirmed(const char *folder, sqlite3 *db, const char *path)
{
    char *replica = in(folder, "replica"), *elsewhere = in(folder, "elsewhere");
    FILE *instead;
    EXPECT(rename(replica, elsewhere) == 0);
    instead = fopen(replica, "w");
    EXPECT(instead != NULL && fclose(instead) == 0);
    EXPECT(sqlite3_exec(db, "INSERT INTO t VALUES (3)", NULL, NULL, NULL) == SQLITE_OK);
    ANSWERS(replvfs_shutdown(0, &error), REPLVFS_IOERR, path);
    ANSWERS(replvfs_shutdown(200, &error), REPLVFS_IOERR, path);
    EXPECT(unlink(replica) == 0);
    EXPECT(rename(elsewhere, replica) == 0);
    ANSWERS(replvfs_shutdown(60000, &error), REPLVFS_OK, NULL);
    sqlite3_free(replica);
    sqlite3_free(elsewhere);
}

int main(int argc, char **argv)
{
    char *database, *out, *replica, *uri;
    sqlite3 *db = NULL;
    const char *folder = argv[1];

    if (argc != 2)
        return 2;
    database = in(folder, "app.db");
    out = in(folder, "out.db");
    replica = sqlite3_mprintf("fs://%s/replica", folder);
    uri = sqlite3_mprintf("file:%s?vfs=replvfs&replica=%s", database, replica);

    EXPECT(strlen(replvfs_version()) >= 5);
    ANSWERS(replvfs_shutdown(0, &error), REPLVFS_OK, NULL);
    ANSWERS(restores(replica, out, NULL, REPLVFS_NEWEST, 0, &error), REPLVFS_NOTFOUND, NULL);
    EXPECT(replvfs_register(NULL) == REPLVFS_OK);
    ANSWERS(replvfs_register(&error), REPLVFS_OK, NULL);
    ANSWERS(replvfs_flush(database, &error), REPLVFS_NOTFOUND, "open it first");

    EXPECT(sqlite3_open_v2(uri, &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL) == SQLITE_OK);
    EXPECT(sqlite3_exec(db, "PRAGMA journal_mode=WAL; CREATE TABLE t(a)", NULL, NULL, NULL) == SQLITE_OK);
    EXPECT(sqlite3_exec(db, "INSERT INTO t VALUES (1)", NULL, NULL, NULL) == SQLITE_OK);
    ANSWERS(replvfs_wait(database, 1, &error), REPLVFS_OK, NULL);
    threads(database);
    in_a_child(folder, database);
    not_confirmed(folder, db, database);
    EXPECT(sqlite3_close(db) == SQLITE_OK);
    ANSWERS(replvfs_shutdown(60000, &error), REPLVFS_OK, NULL);

    null_and_not_utf8(replica, out);
    what_cannot_be_restored(folder, replica, out);
    what_can(replica, out);
    damaged(folder, replica, out);
    unsound(folder);

    sqlite3_free(database);
    sqlite3_free(out);
    sqlite3_free(replica);
    sqlite3_free(uri);
    if (failures == 0)
        printf("misuse: passed with SQLite %s\n", sqlite3_libversion());
    return failures != 0;
}
