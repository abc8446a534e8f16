/*
 * The hosts in C of tests/hosts/table.py, which tells what each command is to do: with the C library (-DLINKED), or as a program that loads the extension.
 *
 *     host write|resume|read|refuse NAME
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <sqlite3.h>
#ifdef LINKED
#include <replvfs.h>
#endif

static int refusing = 0;

static void fail(const char *what, const char *why)
{
    if (refusing) {
        printf("refused: %s: %s\n", what, why);
        exit(0);
    }
    fprintf(stderr, "%s: %s\n", what, why);
    exit(1);
}

static void log_line(void *nothing, int code, const char *message)
{
    (void)nothing;
    fprintf(stderr, "(%d) %s\n", code, message);
}

#ifdef LINKED
static void prepare_replvfs(void)
{
    char *error = NULL;
    if (replvfs_register(&error) != REPLVFS_OK)
        fail("replvfs_register", error);
}
#else
static void prepare_replvfs(void)
{
    sqlite3 *loader = NULL;
    char *error = NULL;
    if (sqlite3_open(":memory:", &loader) != SQLITE_OK)
        fail(":memory:", sqlite3_errmsg(loader));
    sqlite3_enable_load_extension(loader, 1);
    if (sqlite3_load_extension(loader, getenv("EXTENSION"), NULL, &error) != SQLITE_OK)
        fail("sqlite3_load_extension", error);
    sqlite3_close(loader);
}
#endif

static int print_row(void *label, int count, char **values, char **names)
{
    (void)names;
    printf("%s", (const char *)label);
    for (int i = 0; i < count; i++)
        printf(" %s", values[i]);
    printf("\n");
    return 0;
}

static void run(sqlite3 *db, const char *sql, const char *label)
{
    if (sqlite3_exec(db, sql, label ? print_row : NULL, (void *)label, NULL) != SQLITE_OK)
        fail(sql, sqlite3_errmsg(db));
}

static void transactions(sqlite3 *db, int count)
{
    while (count-- > 0) {
        run(db, "BEGIN", NULL);
        for (int row = 0; row < 20; row++)
            run(db, "INSERT INTO t(v) VALUES (hex(randomblob(50)))", NULL);
        run(db, "COMMIT", NULL);
    }
}

int main(int count, char **arguments)
{
    sqlite3 *db = NULL;
    const char *command = count == 3 ? arguments[1] : "";

    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 3)
        return 2;
    refusing = strcmp(command, "refuse") == 0;
    sqlite3_config(SQLITE_CONFIG_LOG, log_line, NULL);
    prepare_replvfs();
    if (sqlite3_open_v2(arguments[2], &db, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_URI, NULL) != SQLITE_OK)
        fail(arguments[2], sqlite3_errmsg(db));

    if (strcmp(command, "write") == 0) {
        printf("sqlite %s\n", sqlite3_libversion());
        run(db, "PRAGMA journal_mode=WAL", NULL);
        run(db, "CREATE TABLE t(id INTEGER PRIMARY KEY, v TEXT)", NULL);
        transactions(db, 5);
        run(db, "PRAGMA replvfs_flush", "flushed");
        transactions(db, 3);
        printf("waiting\n");
        for (;;)
            pause();
    } else if (strcmp(command, "resume") == 0) {
        run(db, "SELECT count(*), sum(id) FROM t", "rows");
        transactions(db, 1);
        run(db, "PRAGMA replvfs_flush", "flushed");
    } else if (strcmp(command, "read") == 0) {
        run(db, "SELECT count(*), sum(id) FROM t", "rows");
    } else {
        run(db, "PRAGMA schema_version", NULL);
        fprintf(stderr, "it was not refused\n");
        return 1;
    }
    return sqlite3_close(db) == SQLITE_OK ? 0 : 1;
}
