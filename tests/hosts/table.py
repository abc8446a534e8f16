#!/usr/bin/python3
"""One script, host by host: written, killed, restored, read as it was, gone on with, refused. Prints a table of it.

usage: table.py libreplvfs.so replvfs [--c-library PREFIX] [--rust FOLDER] [--sqlx FOLDER] [--only PART OF A HOST'S NAME]

The first two are the extension and the command line. PREFIX is what replicator/packaging/c-library.sh made, FOLDER where cargo put the programs `host`; hosts
without theirs are left out, and with CI=true that is a failure. prepare.sh gets what the others need.

A host is a program that is called as `program command name`, where `name` is what it opens, and that loads the extension named by EXTENSION if replvfs is not linked in:

    write     prints "sqlite <version>"; WAL, the table `t`, 5 transactions of 20 rows, a flush: "flushed <txid>"; 3 more transactions, then "waiting", until it is killed
    resume    prints "rows <count> <sum of ids>"; one more transaction, a flush, a close
    read      prints "rows <count> <sum of ids>"
    refuse    registers replvfs, opens and reads: prints "refused: <message>" if its language's way of an error came of it, and fails if none did
    threads   WAL, the table; 4 threads each load the extension, open, and write 5 transactions; a flush; as `read`
"""

import argparse
import dataclasses
import os
import pathlib
import selectors
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CI = os.environ.get("CI") == "true"
STEPS = ["written", "killed", "restored", "gone on", "past", "refused", "threads"]
SECONDS = 120


class Failed(Exception):
    """A step did not do what it should."""


def expect(condition, message):
    if not condition:
        raise Failed(message)


@dataclasses.dataclass
class Host:
    """A program, and what it can."""

    name: str
    program: list
    #: Whether the name that is opened may be a URI. Otherwise replvfs is the default VFS.
    uris: bool = True
    #: Whether errors of SQLite's error log are on standard error. Otherwise REPLVFS_LOG puts them there.
    logs: bool = True
    threads: bool = False
    environment: dict = dataclasses.field(default_factory=dict)
    #: Why it cannot run here.
    missing: str = ""


class Run:
    """One host in a folder of its own."""

    def __init__(self, host, options, folder):
        self.host, self.replvfs, self.folder = host, options.replvfs, folder
        self.sqlite = "?"
        self.replica = f"fs://{folder}/replica"
        self.database = folder / "app.db"
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("REPLVFS_")}
        self.environment.update(host.environment, EXTENSION=str(options.extension))
        if not host.logs:
            self.environment["REPLVFS_LOG"] = "warn"
        if not host.uris:
            self.environment.update(REPLVFS_DEFAULT="1", REPLVFS_CONFIG=str(folder / "replvfs.toml"))
            self.configure(f"[[database]]\npath = 'app.db'\nreplica = '{self.replica}'\n")

    def configure(self, text):
        (self.folder / "replvfs.toml").write_text(text)

    def name(self, more=""):
        return f"file:{self.database}?vfs=replvfs&replica={self.replica}{more}" if self.host.uris else str(self.database)

    def call(self, command, name, **environment):
        """Runs a command to its end. Returns what it printed on both outputs, and fails if it did or a signal ended it."""
        environment = {**self.environment, **environment}
        process = subprocess.run(
            [*self.host.program, command, name], cwd=self.folder, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=SECONDS
        )
        output = process.stdout + process.stderr
        expect(process.returncode == 0, f"`{command} {name}` ended with {process.returncode}:\n{output}")
        return output

    def tool(self, *arguments):
        process = subprocess.run([self.replvfs, *arguments], cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=SECONDS)
        expect(process.returncode == 0, f"replvfs {' '.join(arguments)} ended with {process.returncode}:\n{process.stdout}{process.stderr}")

    def restored(self, *target):
        """The number of rows of the restored database, which must be those that were written first."""
        out = self.folder / "restored.db"
        self.tool("restore", self.replica, str(out), "--force", "--verify", *target)
        connection = sqlite3.connect(out)
        count, total = connection.execute("SELECT count(*), sum(id) FROM t").fetchone()
        connection.close()
        expect(total == count * (count + 1) // 2, f"{count} rows are there, and their sum is {total}")
        return count

    def written(self):
        self.errors = open(self.folder / "stderr", "w+")
        self.process = subprocess.Popen(
            [*self.host.program, "write", self.name()],
            cwd=self.folder, env=self.environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=self.errors, start_new_session=True,
        )
        said = self.lines_until("waiting")
        found = dict(line.split(" ", 1) for line in said if " " in line)
        self.sqlite, self.flushed = found.get("sqlite", "?"), found.get("flushed")
        expect(self.flushed and int(self.flushed) >= 6, f"it said: {said}")

    def lines_until(self, last):
        said, deadline = b"", time.monotonic() + SECONDS
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while f"{last}\n".encode() not in said:
                ready = selector.select(max(0, deadline - time.monotonic()))
                data = os.read(self.process.stdout.fileno(), 4096) if ready else b""
                if not data:
                    self.errors.seek(0)
                    raise Failed(f"it ended, or took too long, before it said {last!r}: {said.decode()}\n{self.errors.read()}")
                said += data
        return said.decode().splitlines()

    def killed(self):
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(SECONDS)

    def end(self):
        """Whatever happened, nothing of it goes on."""
        if hasattr(self, "process"):
            try:
                self.killed()
            except ProcessLookupError:
                pass
            self.process.stdout.close()
            self.errors.close()

    def restored_states(self):
        count = self.restored("--txid", self.flushed)
        expect(count == 100, f"{count} rows instead of 100 at transaction {self.flushed}")
        count = self.restored()
        expect(count % 20 == 0 and 100 <= count <= 160, f"{count} rows in the newest state")

    def gone_on(self):
        output = self.call("resume", self.name())
        # What was committed and not uploaded is in the file, which the kill left there.
        expect("rows 160 12880\n" in output, f"it said: {output}")
        self.tool("verify", self.replica, "--against", str(self.database))
        count = self.restored()
        expect(count == 180, f"{count} rows in the newest state")

    def past(self):
        if not self.host.uris:
            # No way to name a VFS: what it sees of the past is a restored copy, a database that is not replicated.
            self.tool("restore", self.replica, str(self.folder / "past.db"), "--txid", self.flushed)
            output = self.call("read", str(self.folder / "past.db"))
            expect("rows 100 5050\n" in output, f"a restored copy: {output}")
            return "restored"
        remote = f"file:app.db?vfs=replvfs-remote&replica={self.replica}"
        for name, rows in [(f"{remote}&txid={self.flushed}", "rows 100 5050\n"), (remote, "rows 180 16290\n")]:
            output = self.call("read", name)
            expect(rows in output, f"{name}: {output}")
        return "yes"

    def refused(self):
        missing = self.folder / "missing.toml"
        self.expect_refusal("a file that is not there", self.name(), "missing.toml", REPLVFS_CONFIG=str(missing))
        if not self.host.logs:
            self.expect_refusal("a wrong level", self.name(), "REPLVFS_LOG=loud is not understood", REPLVFS_LOG="loud")
        if self.host.uris:
            nothing = f"fs://{self.folder}/nothing"
            for what, name, reason in [
                ("an unknown parameter", self.name("&flush_intervall=1s"), "flush_intervall"),
                ("a wrong value", self.name("&flush_interval=soon"), "flush_interval=soon"),
                ("no replica", f"file:{self.folder}/other.db?vfs=replvfs", "replica"),
                ("no such store", f"file:{self.folder}/other.db?vfs=replvfs&replica=ftp://nowhere", "ftp"),
                ("a missing database", f"file:{self.folder}/other.db?vfs=replvfs&replica={nothing}&restore=never&mode=rw", "unable to open"),
                ("an empty replica", f"file:other.db?vfs=replvfs-remote&replica={nothing}", "nothing"),
            ]:
                self.expect_refusal(what, name, reason)
        else:
            table = f"[[database]]\npath = 'app.db'\nreplica = '{self.replica}'\n"
            for what, text, reason in [
                ("an unknown key", f"{table}flush_intervall = '1s'\n", "flush_intervall"),
                ("a wrong value", f"{table}flush_interval = 'soon'\n", "flush_interval"),
                ("no replica", "[[database]]\npath = 'app.db'\n", "replica"),
            ]:
                self.configure(text)
                self.expect_refusal(what, str(self.database), reason)
            self.configure(f"[[database]]\npath = 'other.db'\nreplica = 'fs://{self.folder}/nothing'\nrestore = 'never'\n")
            self.expect_refusal("a missing database", str(self.folder / "other.db"), "unable to open", MUST_EXIST="1")
        expect(not (self.folder / "other.db").exists(), "a database that was refused has been made")

    def expect_refusal(self, what, name, reason, **environment):
        output = self.call("refuse", name, **environment)
        expect("refused: " in output, f"{what}: {output}")
        expect(reason in output, f"{what}: the reason is not told ({reason}): {output}")

    def threads(self):
        if not self.host.threads:
            return "-"
        for file in self.folder.glob("app.db*"):
            file.unlink()
        shutil.rmtree(self.folder / "replica")
        if not self.host.uris:
            self.configure(f"[[database]]\npath = 'app.db'\nreplica = '{self.replica}'\n")
        output = self.call("threads", self.name())
        expect("rows 400 80200\n" in output, f"it said: {output}")
        count = self.restored()
        expect(count == 400, f"{count} rows in the replica")
        return "yes"

    def step(self, name):
        return {"restored": self.restored_states, "gone on": self.gone_on}.get(name) or getattr(self, name)


def compile_c(options, work, name, sqlite, linked):
    """Compiles c/host.c with the SQLite of a folder: as source, or as an object."""
    out = work / name
    command = ["cc", "-std=gnu99", "-Wall", "-Wextra", "-Werror", "-O1", str(HERE / "c" / "host.c"), f"-I{sqlite}"]
    if linked:
        environment = {**os.environ, "PKG_CONFIG_PATH": str(options.c_library / "lib" / "pkgconfig")}
        pkg_config = subprocess.run(["pkg-config", "--static", "--cflags", "--libs", "replvfs"], env=environment, check=True, capture_output=True, text=True)
        command += ["-DLINKED", "-Wl,--gc-sections", *pkg_config.stdout.split(), "-lsqlite3"]
    else:
        command += [str(sqlite / "sqlite3.o"), "-lpthread", "-ldl", "-lm"]
    subprocess.run([*command, "-o", str(out)], check=True)
    return [str(out)]


def hosts(options, work):
    prepared = ROOT / "target" / "hosts"
    python = prepared / "python" / "bin" / "python"
    shell = next(iter(sorted((prepared / "python").glob("lib/python*/site-packages/apsw/sqlite_extra_binaries/sqlite3_shell"))), None)
    node = prepared / "node" / "node"
    unprepared = "run tests/hosts/prepare.sh target/hosts"

    def there(path, why=unprepared):
        return "" if path and pathlib.Path(path).exists() else why

    def rust(name, folder, option):
        program = folder and folder / "host"
        return Host(name, [str(program)], missing=there(program, f"{option} is not given, or has no program `host`"))

    def of_node(module, script, **more):
        environment = {"NODE_PATH": str(prepared / "node" / "node_modules"), "NODE_NO_WARNINGS": "1"}
        return Host(f"Node, {module}", [str(node), str(HERE / "node" / script), module], logs=False, threads=True, environment=environment, missing=there(prepared / "node.ready"), **more)

    def of_python(module, program):
        return Host(f"Python, {module}", [str(program), str(HERE / "python" / "host.py"), module], logs=False, threads=True, missing=there(program))

    def in_c(name, folder, linked=False):
        missing = there(options.c_library, "--c-library is not given") if linked else there(folder)
        wanted = options.only in name and not missing
        return Host(name, compile_c(options, work, f"host-{len(os.listdir(work))}", folder, linked) if wanted else [], missing=missing)

    sqlite3_h = pathlib.Path("/usr/include")
    return [
        rust("Rust, rusqlite", options.rust, "--rust"),
        rust("Rust, sqlx", options.sqlx, "--sqlx"),
        in_c("C, libreplvfs.a", sqlite3_h, linked=True),
        in_c("C, the oldest SQLite", prepared / "sqlite-3.32.0"),
        Host("sqlite3 shell, system", [str(HERE / "shell" / "host.sh"), "sqlite3"], missing="" if shutil.which("sqlite3") else "no program sqlite3"),
        Host("sqlite3 shell, newest", [str(HERE / "shell" / "host.sh"), str(shell)], missing=there(shell)),
        of_python("sqlite3", "/usr/bin/python3"),
        of_python("pysqlite3", python),
        Host("Python, apsw", [str(python), str(HERE / "python" / "apsw_host.py")], missing=there(python)),
        of_node("better-sqlite3", "host.js", uris=False),
        of_node("node:sqlite", "host.js"),
    ]


def too_old(options, work):
    """A host whose SQLite is too old is told so when it loads the extension."""
    sqlite = ROOT / "target" / "hosts" / "sqlite-3.31.1"
    if not sqlite.exists():
        return "SKIPPED: run tests/hosts/prepare.sh target/hosts"
    host = Host("C, a SQLite that is too old", compile_c(options, work, "too-old", sqlite, linked=False))
    Run(host, options, work).expect_refusal("SQLite 3.31.1", "file:nothing.db", "replvfs needs SQLite 3.32.0 or newer; this program has 3.31.1")
    return "is refused, and told why"


def row_of(host, options, folder):
    """A line of the table, and what failed."""
    if host.missing:
        return ["", *["SKIPPED"] + [""] * (len(STEPS) - 1)], f"SKIPPED: {host.missing}"
    folder.mkdir()
    run, cells = Run(host, options, folder), []
    try:
        for step in STEPS:
            cells.append(run.step(step)() or "yes")
        failure = None
    except (Failed, OSError, subprocess.SubprocessError, sqlite3.Error) as error:
        failure = f"{step}: {error}"
        cells.append("FAILED")
    finally:
        run.end()
    return [run.sqlite, *cells, *[""] * (len(STEPS) - len(cells))], failure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("extension", type=lambda path: pathlib.Path(path).resolve(strict=True))
    parser.add_argument("replvfs", type=lambda path: pathlib.Path(path).resolve(strict=True))
    for option in ("--c-library", "--rust", "--sqlx"):
        parser.add_argument(option, type=lambda path: pathlib.Path(path).resolve(strict=True))
    parser.add_argument("--only", default="")
    options = parser.parse_args()

    table, failures = [["host", "SQLite", *STEPS]], []
    with tempfile.TemporaryDirectory(prefix="replvfs-hosts-") as work:
        work = pathlib.Path(work)
        programs = work / "programs"
        programs.mkdir()
        for number, host in enumerate(hosts(options, programs)):
            if options.only not in host.name:
                continue
            began = time.monotonic()
            row, failure = row_of(host, options, work / str(number))
            table.append([host.name, *row])
            print(f"-- {host.name}: {failure or f'{time.monotonic() - began:.1f} s'}", flush=True)
            if failure and (CI or not host.missing):
                failures.append(host.name)
        try:
            old = too_old(options, programs)
            if CI and old.startswith("SKIPPED"):
                failures.append("too old")
        except Failed as error:
            old = f"FAILED: {error}"
            failures.append("too old")

    widths = [max(len(row[column]) for row in table) for column in range(len(table[0]))]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    print(f"a host with SQLite 3.31.1 {old}")
    if failures:
        sys.exit(f"FAILED: {', '.join(failures)}")
    print("hosts: passed")


main()
