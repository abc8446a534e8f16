/*
 * What makes replvfs the default VFS of SQLite's test programs, where the environment says so (REPLVFS_DEFAULT=1), and tells their fault injection
 * which calls are replvfs's own.
 *
 * The scripts let the n-th allocation, I/O or system call fail, and count them. What replvfs does beside what SQLite asked it for is none of them: faults.sed
 * lets the injection ask suite_own(). With SUITE_OWN_FAULTS=1 such calls have their turn all the same, and are called "benign", SQLite's own word for what it
 * can do without: then the cases that fail are other ones, and no statement is to have another result for it.
 *
 * How it is told: all that a thread does inside a method of replvfs's is replvfs's own, but for that same method on the file underneath, once: that is
 * what SQLite asked for, passed on. So there are methods above those of replvfs, and beneath them. Handles that replvfs opens for itself are its own on
 * every thread. They are known by their names, which it makes with sqlite3_create_filename(): in the archive that is linked here, that is
 * suite_create_filename(). Files that replvfs leaves to the "unix" VFS are untouched.
 */
#include <pthread.h>
#include <replvfs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "sqlite3.h"

#ifdef SQLITE_TEST
/* What SQLite's own code uses for it. */
void sqlite3BeginBenignMalloc(void);
void sqlite3EndBenignMalloc(void);
extern int sqlite3_io_error_benign;
#else
/* Nothing is injected. */
#define sqlite3BeginBenignMalloc() ((void)0)
#define sqlite3EndBenignMalloc() ((void)0)
static int sqlite3_io_error_benign;
#endif

/* What this thread is at. */
struct doing {
    /* replvfs's own work. */
    int own;
    /* The method that SQLite called, until replvfs has passed it on. */
    int asked;
};

enum asked {
    NOTHING,
    Close,
    Read,
    Write,
    Truncate,
    Sync,
    FileSize,
    Lock,
    Unlock,
    CheckReservedLock,
    FileControl,
    SectorSize,
    DeviceCharacteristics,
    ShmMap,
    ShmLock,
    ShmBarrier,
    ShmUnmap,
    Fetch,
    Unfetch,
    Open,
    Delete,
    Access,
    FullPathname
};

static _Thread_local struct doing doing;
static _Thread_local const char *own_name;
static int own_faults;
static sqlite3_vfs *unix_vfs;
static sqlite3_vfs replvfs_vfs;

/* What the fault injection asks. */
int suite_own(void)
{
    return doing.own && !own_faults;
}

struct state {
    struct doing doing;
    int benign;
};

static struct state enter(int own, int asked)
{
    struct state before = {doing, sqlite3_io_error_benign};
    doing.own = own;
    doing.asked = asked;
    if (own && own_faults) {
        sqlite3_io_error_benign = 1;
        sqlite3BeginBenignMalloc();
    }
    return before;
}

static void leave(struct state before, int asked)
{
    if (doing.own && own_faults) {
        sqlite3EndBenignMalloc();
        sqlite3_io_error_benign = before.benign;
    }
    doing.own = before.doing.own;
    doing.asked = asked;
}

/* A call of SQLite's to replvfs. */
#define ABOVE(method, type, call)                 \
    struct state before = enter(1, method);       \
    type code = call;                             \
    leave(before, before.doing.asked);            \
    return code

/* A call of replvfs's, to pass on what SQLite asked for, or for itself. */
#define BENEATH(method, type, call)                              \
    int asked = doing.asked == method ? NOTHING : doing.asked;   \
    struct state before = enter(doing.own && doing.asked != method, NOTHING); \
    type code = call;                                            \
    leave(before, asked);                                        \
    return code

/* A call of replvfs's through a handle of its own. */
#define OWN(method, type, call)             \
    struct state before = enter(1, NOTHING); \
    type code = call;                       \
    leave(before, before.doing.asked);      \
    return code

/* The methods of a file, in front of those that it has. */
struct methods {
    sqlite3_io_methods ours;
    const sqlite3_io_methods *theirs;
};

static const sqlite3_io_methods *theirs(sqlite3_file *file)
{
    return ((const struct methods *)file->pMethods)->theirs;
}

#define EACH_METHOD(_)                                                                                                                            \
    _(Close, (sqlite3_file * file), (file))                                                                                                       \
    _(Read, (sqlite3_file * file, void *data, int amount, sqlite3_int64 at), (file, data, amount, at))                                            \
    _(Write, (sqlite3_file * file, const void *data, int amount, sqlite3_int64 at), (file, data, amount, at))                                     \
    _(Truncate, (sqlite3_file * file, sqlite3_int64 size), (file, size))                                                                          \
    _(Sync, (sqlite3_file * file, int flags), (file, flags))                                                                                      \
    _(FileSize, (sqlite3_file * file, sqlite3_int64 *size), (file, size))                                                                         \
    _(Lock, (sqlite3_file * file, int level), (file, level))                                                                                      \
    _(Unlock, (sqlite3_file * file, int level), (file, level))                                                                                    \
    _(CheckReservedLock, (sqlite3_file * file, int *is), (file, is))                                                                              \
    _(FileControl, (sqlite3_file * file, int control, void *value), (file, control, value))                                                       \
    _(SectorSize, (sqlite3_file * file), (file))                                                                                                  \
    _(DeviceCharacteristics, (sqlite3_file * file), (file))                                                                                       \
    _(ShmMap, (sqlite3_file * file, int region, int size, int extend, void volatile **at), (file, region, size, extend, at))                      \
    _(ShmLock, (sqlite3_file * file, int slot, int count, int flags), (file, slot, count, flags))                                                 \
    _(ShmUnmap, (sqlite3_file * file, int deletes), (file, deletes))                                                                              \
    _(Fetch, (sqlite3_file * file, sqlite3_int64 at, int amount, void **page), (file, at, amount, page))                                          \
    _(Unfetch, (sqlite3_file * file, sqlite3_int64 at, void *page), (file, at, page))

#define ABOVE_FILE(method, declared, passed) static int above_##method declared { ABOVE(method, int, theirs(file)->x##method passed); }
#define BENEATH_FILE(method, declared, passed) static int beneath_##method declared { BENEATH(method, int, theirs(file)->x##method passed); }
#define OWN_FILE(method, declared, passed) static int own_##method declared { OWN(method, int, theirs(file)->x##method passed); }
EACH_METHOD(ABOVE_FILE)
EACH_METHOD(BENEATH_FILE)
EACH_METHOD(OWN_FILE)

static void above_ShmBarrier(sqlite3_file *file)
{
    struct state before = enter(1, ShmBarrier);
    theirs(file)->xShmBarrier(file);
    leave(before, before.doing.asked);
}

/* Nothing of it can fail. */
static void beneath_ShmBarrier(sqlite3_file *file)
{
    theirs(file)->xShmBarrier(file);
}

#define own_ShmBarrier beneath_ShmBarrier

#define METHODS(kind)                                                                                                                               \
    {                                                                                                                                               \
        3, kind##_Close, kind##_Read, kind##_Write, kind##_Truncate, kind##_Sync, kind##_FileSize, kind##_Lock, kind##_Unlock,                      \
            kind##_CheckReservedLock, kind##_FileControl, kind##_SectorSize, kind##_DeviceCharacteristics, kind##_ShmMap, kind##_ShmLock,           \
            kind##_ShmBarrier, kind##_ShmUnmap, kind##_Fetch, kind##_Unfetch                                                                        \
    }

static const sqlite3_io_methods above_methods = METHODS(above);
static const sqlite3_io_methods beneath_methods = METHODS(beneath);
static const sqlite3_io_methods own_methods = METHODS(own);

/* Puts methods in front of those of a file, those that it has. */
static void put_before(sqlite3_file *file, const sqlite3_io_methods *kind)
{
    static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;
    static struct {
        const sqlite3_io_methods *kind;
        struct methods methods;
    } known[24];
    struct methods *found;
    int at = 0;

    pthread_mutex_lock(&alone);
    while (known[at].kind != NULL && (known[at].kind != kind || known[at].methods.theirs != file->pMethods))
        at++;
    if (at == sizeof(known) / sizeof(known[0]) - 1) {
        fputs("more kinds of files than expected\n", stderr);
        exit(70);
    }
    found = &known[at].methods;
    if (known[at].kind == NULL) {
        const sqlite3_io_methods *has = file->pMethods;
        known[at].kind = kind;
        found->theirs = has;
        found->ours = *kind;
        found->ours.iVersion = has->iVersion;
        if (has->iVersion < 2 || has->xShmMap == NULL) {
            found->ours.xShmMap = NULL;
            found->ours.xShmLock = NULL;
            found->ours.xShmBarrier = NULL;
            found->ours.xShmUnmap = NULL;
        }
        if (has->iVersion < 3 || has->xFetch == NULL) {
            found->ours.xFetch = NULL;
            found->ours.xUnfetch = NULL;
        }
    }
    pthread_mutex_unlock(&alone);
    file->pMethods = &found->ours;
}

const char *suite_create_filename(const char *database, const char *journal, const char *wal, int count, const char **parameters)
{
    struct state before = enter(1, NOTHING);
    own_name = sqlite3_create_filename(database, journal, wal, count, parameters);
    leave(before, before.doing.asked);
    return own_name;
}

/* Beneath replvfs. */
static int beneath_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    int own = name != NULL && name == own_name;
    int asked = own || doing.asked != Open ? doing.asked : NOTHING;
    /* Only what replvfs asks for is its own to look at. */
    int watched = own || (doing.own && doing.asked == Open && (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)));
    struct state before = enter(own || (doing.own && doing.asked != Open), NOTHING);
    int code;

    (void)vfs;
    if (own)
        own_name = NULL;
    code = unix_vfs->xOpen(unix_vfs, name, file, flags, out_flags);
    leave(before, asked);
    if (code == SQLITE_OK && watched)
        put_before(file, own ? &own_methods : &beneath_methods);
    return code;
}

static int beneath_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
    (void)vfs;
    BENEATH(Delete, int, unix_vfs->xDelete(unix_vfs, name, sync));
}

static int beneath_access(sqlite3_vfs *vfs, const char *name, int flags, int *result)
{
    (void)vfs;
    BENEATH(Access, int, unix_vfs->xAccess(unix_vfs, name, flags, result));
}

static int beneath_full_pathname(sqlite3_vfs *vfs, const char *name, int room, char *out)
{
    (void)vfs;
    BENEATH(FullPathname, int, unix_vfs->xFullPathname(unix_vfs, name, room, out));
}

/* Above it. */
static int above_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *file, int flags, int *out_flags)
{
    struct state before = enter(1, Open);
    int code = replvfs_vfs.xOpen(vfs, name, file, flags, out_flags);
    leave(before, before.doing.asked);
    /* One that replvfs passes through has none of its methods. */
    if (code == SQLITE_OK && (flags & (SQLITE_OPEN_MAIN_DB | SQLITE_OPEN_WAL)) && file->pMethods->xClose != beneath_Close)
        put_before(file, &above_methods);
    return code;
}

static int above_delete(sqlite3_vfs *vfs, const char *name, int sync)
{
    ABOVE(Delete, int, replvfs_vfs.xDelete(vfs, name, sync));
}

static int above_access(sqlite3_vfs *vfs, const char *name, int flags, int *result)
{
    ABOVE(Access, int, replvfs_vfs.xAccess(vfs, name, flags, result));
}

static int above_full_pathname(sqlite3_vfs *vfs, const char *name, int room, char *out)
{
    ABOVE(FullPathname, int, replvfs_vfs.xFullPathname(vfs, name, room, out));
}

static sqlite3_vfs beneath_vfs;

/*
 * SQLite calls it at the end of sqlite3_initialize(), when it was built with -DSQLITE_EXTRA_INIT=suite_initialized: also after each
 * sqlite3_shutdown(), behind which the "unix" VFS has made itself the default again.
 */
int suite_initialized(const char *unused)
{
    const char *wanted = getenv("REPLVFS_DEFAULT");
    const char *own_faults_wanted = getenv("SUITE_OWN_FAULTS");
    char *error;
    sqlite3_vfs *vfs;

    (void)unused;
    if (wanted == NULL || strcmp(wanted, "1") != 0)
        return SQLITE_OK;
    if (unix_vfs == NULL) {
        own_faults = own_faults_wanted != NULL && strcmp(own_faults_wanted, "1") == 0;
        unix_vfs = sqlite3_vfs_find(NULL);
        beneath_vfs = *unix_vfs;
        beneath_vfs.zName = "suite";
        beneath_vfs.xOpen = beneath_open;
        beneath_vfs.xDelete = beneath_delete;
        beneath_vfs.xAccess = beneath_access;
        beneath_vfs.xFullPathname = beneath_full_pathname;
        sqlite3_vfs_register(&beneath_vfs, 1);
    }
    if (replvfs_register(&error) != REPLVFS_OK) {
        fprintf(stderr, "replvfs: %s\n", error);
        exit(70);
    }
    vfs = sqlite3_vfs_find("replvfs-default");
    if (vfs == NULL) {
        fputs("replvfs is not registered\n", stderr);
        exit(70);
    }
    if (replvfs_vfs.xOpen == NULL) {
        replvfs_vfs = *vfs;
        vfs->xOpen = above_open;
        vfs->xDelete = above_delete;
        vfs->xAccess = above_access;
        vfs->xFullPathname = above_full_pathname;
    }
    return sqlite3_vfs_register(vfs, 1);
}
