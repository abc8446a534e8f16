#!/usr/bin/env python3
"""Runs scripts of SQLite's test suite with the plain VFS and with replvfs, and compares. See README.md."""

import argparse
import fnmatch
import json
import os
import pwd
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODES = ("plain", "replvfs")
SUMMARY = re.compile(r"^(\d+) errors out of (\d+) tests", re.M)
FAILED = re.compile(r"^!Failures on these tests:(.*)$", re.M)
SHOWN = re.compile(r"^(\S+)\.\.\.( Ok$)?", re.M)
VERDICT = re.compile(r"^! (\S+) (expected|got): *(.*)$", re.M)


class Suite:
    """Where everything is."""

    def __init__(self, folder):
        self.folder = folder
        self.tests = folder / "src" / "sqlite" / "test"
        self.results = Path(os.environ.get("SQLITE_SUITE_RESULTS", folder / "results"))
        self.runs = Path(os.environ.get("SQLITE_SUITE_RUNS", folder / "runs"))
        # A copy: the next one may be built meanwhile.
        self.runs.mkdir(parents=True, exist_ok=True)
        self.testfixture = self.runs / f"testfixture-{os.getpid()}"
        shutil.copy(folder / "build" / "testfixture-replvfs", self.testfixture)

    def of(self, mode, name, suffix):
        """Where what a script printed is, or its result."""
        return self.results / mode / (name.replace("/", "-") + suffix)

    def known(self, mode, name):
        """The last result of a script, if there is one."""
        path = self.of(mode, name, ".json")
        return json.loads(path.read_text()) if path.exists() else None

    def remember(self, mode, name, result):
        path = self.of(mode, name, ".json")
        path.with_suffix(".new").write_text(json.dumps(result))
        path.with_suffix(".new").replace(path)


def scripts_of(suite, name):
    """The (permutation, script) pairs of a set: a line of the file sets/NAME, or a permutation of SQLite's as `permutation:NAME`."""
    pairs = []
    if name.startswith("permutation:"):
        permutation = name.split(":", 1)[1]
        return [(permutation, script) for script in permutation_files(suite, permutation)]
    for line in (HERE / "sets" / name).read_text().splitlines():
        line = line.split("#", 1)[0].strip()
        if not line:
            continue
        if line.startswith("permutation:"):
            words = line.split()
            files = permutation_files(suite, words[0].split(":", 1)[1])
            chosen = [file for file in files if not words[1:] or any(fnmatch.fnmatch(file, pattern) for pattern in words[1:])]
            pairs += [(words[0].split(":", 1)[1], file) for file in chosen]
            continue
        found = sorted(path.name for path in suite.tests.glob(line))
        if not found:
            sys.exit(f"sets/{name}: no script is named {line}")
        pairs += [("", script) for script in found]
    unique = list(dict.fromkeys(pairs))
    left_out = left_out_scripts()
    return [pair for pair in unique if pair[1] not in left_out]


def left_out_scripts():
    path = HERE / "left-out.txt"
    lines = (line.split("#", 1)[0].split() for line in path.read_text().splitlines()) if path.exists() else ()
    return {words[0] for words in lines if words}


def permutation_files(suite, permutation):
    """Asks SQLite's own list."""
    ask = f"""
        set testdir {{{suite.tests}}}
        set argv0 $testdir/list.test
        set argv {{}}
        proc finish_test {{}} {{}}
        source $testdir/permutations.test
        array set of $::testspec({permutation})
        foreach file [lsort $of(-files)] {{ puts "FILE [file tail $file]" }}
    """
    work = suite.runs / "list"
    work.mkdir(parents=True, exist_ok=True)
    (work / "list.tcl").write_text(ask)
    out = subprocess.run([suite.testfixture, "list.tcl"], cwd=work, env=environment(suite, "plain", work), capture_output=True, text=True, check=False)
    files = [line.split(None, 1)[1] for line in out.stdout.splitlines() if line.startswith("FILE ")]
    if not files:
        sys.exit(f"permutation {permutation}: {out.stdout[-500:]}{out.stderr[-500:]}")
    return files


def environment(suite, mode, replica, own_faults=False):
    env = {name: value for name, value in os.environ.items() if not name.startswith(("REPLVFS_", "SUITE_"))}
    if mode == "replvfs":
        env.update(
            REPLVFS_DEFAULT="1",
            REPLVFS_REPLICA=f"fs://{replica}/{{path}}",
            # A process has caught up with its store nearly always.
            REPLVFS_FLUSH_INTERVAL="10ms",
            # The scripts delete databases, and expect them to be gone.
            REPLVFS_RESTORE="never",
            SUITE_OWN_FAULTS="1" if own_faults else "0",
        )
    return env


class Runner:
    def __init__(self, suite, options):
        self.suite = suite
        self.timeout = options.timeout
        self.keep = options.keep
        self.own_faults = options.own_faults
        self.user = unprivileged(suite)
        # Nothing is waited for where the end is known not to come.
        self.endless = [row for row in expected_differences() if row[1] == "(hangs)"]
        self.started = set()
        self.lock = threading.Lock()

    def run(self, mode, permutation, script):
        """One script in a process and a folder of its own."""
        name = key(permutation, script)
        folder = self.suite.runs / mode / name.replace("/", "-")
        replica = self.suite.runs / mode / (name.replace("/", "-") + "-replica")
        for old in (folder, replica):
            shutil.rmtree(old, ignore_errors=True)
        folder.mkdir(parents=True)
        replica.mkdir()
        if self.user is not None:
            for made in (folder, replica):
                os.chown(made, self.user, self.user)
        log = self.suite.of(mode, name, ".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [self.suite.testfixture]
        command += [self.suite.tests / "permutations.test", permutation, script] if permutation else [self.suite.tests / script]
        begin = time.monotonic()
        with open(log, "wb") as out:
            process = self.start(command, cwd=folder, env=environment(self.suite, mode, replica, self.own_faults), stdout=out)
            try:
                code = process.wait(20 if mode == "replvfs" and any(is_for(row, name) for row in self.endless) else self.timeout)
            except subprocess.TimeoutExpired:
                code = "timeout"
                out.write(backtraces(process.pid).encode())
            finally:
                # Children of the script, too.
                end_session(process.pid)
                process.wait()
                with self.lock:
                    self.started.discard(process.pid)
        result = self.result(log, code)
        result["seconds"] = round(time.monotonic() - begin, 1)
        if not self.keep:
            for used in (folder, replica):
                shutil.rmtree(used, ignore_errors=True)
        return result

    def start(self, command, **where):
        """In a session of its own, which ends with this program."""
        groups = None if self.user is None else []
        with self.lock:
            process = subprocess.Popen(
                command,
                user=self.user,
                group=self.user,
                extra_groups=groups,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                **where,
            )
            self.started.add(process.pid)
        return process

    @staticmethod
    def result(log, code):
        text = log.read_text(errors="replace")
        summary = SUMMARY.search(text)
        failed = FAILED.search(text)
        errors = {}
        for case, what, value in VERDICT.findall(text):
            errors.setdefault(case, {})[what] = value[:300]
        if not summary:
            # Up to where it came.
            shown = SHOWN.findall(text)
            failures = {case for case, ok in shown if not ok}
        else:
            failures = set(failed[1].split()) if failed else set()
        return {
            "exit": code,
            "cases": int(summary[2]) if summary else None,
            "errors": int(summary[1]) if summary else None,
            "failed": sorted(failures),
            "verdicts": errors,
            "tail": "" if summary else text[-1500:],
        }


def key(permutation, script):
    return f"{permutation}/{script}" if permutation else script


def unprivileged(suite):
    """Some scripts take the right to write away from a file, and do not run as root: `nobody`, where it may read them."""
    if os.geteuid() != 0:
        return None
    nobody = pwd.getpwnam("nobody").pw_uid
    may = subprocess.run(["test", "-r", suite.tests / "tester.tcl", "-a", "-x", suite.testfixture], user=nobody, group=nobody, extra_groups=[], check=False)
    return nobody if may.returncode == 0 else None


def end_session(leader):
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        pass


def backtraces(leader):
    """All threads of all programs of a script that hangs."""
    listed = subprocess.run(["ps", "-o", "pid=,comm=", "-g", str(leader)], capture_output=True, text=True, check=False).stdout
    text = f"\n\n== HANGS\n{listed}"
    for line in listed.splitlines():
        pid = line.split()[0]
        if shutil.which("gdb"):
            found = subprocess.run(["gdb", "-p", pid, "-batch", "-ex", "thread apply all bt 30"], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
            text += f"\n== process {pid}\n{found.stdout}"
    return text


def same(plain, other):
    return all(plain[what] == other[what] for what in ("exit", "cases", "errors", "failed"))


def describe(plain, other):
    if plain["exit"] == "timeout":
        return "did not end with the plain VFS either, within the time"
    if other["cases"] is None:
        return f"ended with {other['exit']}" if other["exit"] != "timeout" else "HANGS"
    only = sorted(set(other["failed"]) - set(plain["failed"]))
    fewer = sorted(set(plain["failed"]) - set(other["failed"]))
    words = []
    if only:
        words.append("fails only with replvfs: " + " ".join(only[:8]) + (f" and {len(only) - 8} more" if len(only) > 8 else ""))
    if fewer:
        words.append("fails only without: " + " ".join(fewer[:8]))
    if plain["cases"] != other["cases"]:
        words.append(f"cases {plain['cases']} and {other['cases']}")
    return "; ".join(words) or f"exit {plain['exit']} and {other['exit']}"


def expected_differences():
    """Lines of expected.txt: `script case reason`; the case may have wildcards."""
    rows = []
    path = HERE / "expected.txt"
    for line in path.read_text().splitlines() if path.exists() else ():
        line = line.strip()
        if line and not line.startswith("#"):
            script, case, reason = line.split(None, 2)
            rows.append((script, case, reason))
    return rows


def is_for(row, name):
    """Whether a line of expected.txt is for a script. One that names no permutation is for all of them."""
    return fnmatch.fnmatchcase(name if "/" in row[0] else name.rpartition("/")[2], row[0])


def judge(name, plain, other, expected, own_faults):
    """What of a difference is not expected, and which expected ones have gone."""
    rows = [row for row in expected if is_for(row, name)]
    used = set()
    surprises = []

    def covered(case):
        # Some permutations put their name before that of each case.
        plain_case = case.removeprefix(name.rpartition("/")[0] + ".")
        hits = [row for row in rows if fnmatch.fnmatchcase(case, row[1]) or fnmatch.fnmatchcase(plain_case, row[1])]
        used.update(hits)
        return bool(hits)

    if other["cases"] is None or plain["cases"] is None:
        # What does not count its cases, and ends alike, is alike. What was ended was not compared.
        alike = plain["cases"] == other["cases"] and plain["exit"] == other["exit"] and plain["exit"] in (0, 1)
        how = "(hangs)" if other["exit"] == "timeout" else "(end)"
        if not alike and not covered(how):
            surprises.append(how)
    else:
        if plain["cases"] != other["cases"] and not own_faults and not covered("(cases)"):
            surprises.append("(cases)")
        if plain["exit"] != other["exit"] and plain["errors"] == other["errors"] and not covered("(exit)"):
            surprises.append("(exit)")
    for case in sorted(set(plain["failed"]) ^ set(other["failed"])):
        spent = own_faults and case not in plain["failed"] and is_success(other["verdicts"].get(case, {}))
        if not spent and not covered(case):
            surprises.append(case)
    gone = [row for row in rows if row not in used and not row[2].startswith("sometimes:")]
    return surprises, gone


def is_success(verdict):
    """A fault was injected, an error expected, and there was none, since a call of replvfs's own had it: [1 …] and [0 …]."""
    first = [verdict.get(what, "").strip("[]{} ").split(" ")[0] for what in ("expected", "got")]
    return first == ["1", "0"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, help="target/sqlite-suite")
    parser.add_argument("--set", action="append", default=[], help="a file of sets/, or permutation:NAME")
    parser.add_argument("--script", action="append", default=[], help="a script (wildcards allowed), or PERMUTATION/SCRIPT")
    parser.add_argument("--of", action="append", default=[], help="of these scripts only those in this file of sets/")
    parser.add_argument("--without", action="append", default=[], help="leave these scripts out (wildcards allowed)")
    parser.add_argument("--new", action="store_true", help="only scripts that have no result yet")
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--timeout", type=int, default=900, help="seconds for each script")
    parser.add_argument("--keep", action="store_true", help="leave the folders of the scripts")
    parser.add_argument("--judge", action="store_true", help="run nothing: compare the last results")
    parser.add_argument("--own-faults", action="store_true", help="let replvfs's own calls fail, too: see README.md")
    parser.add_argument("--known", action="store_true", help="take the results of the plain VFS from the last run, where there are any")
    options = parser.parse_args()
    suite = Suite(options.folder.resolve())
    runner = Runner(suite, options)

    pairs = []
    for name in options.set:
        pairs += scripts_of(suite, name)
    for pattern in options.script:
        permutation, _, pattern = pattern.rpartition("/")
        pairs += [(permutation, path.name) for path in sorted(suite.tests.glob(pattern))]
    pairs = list(dict.fromkeys(pairs))
    for name in options.of:
        chosen = {script for _, script in scripts_of(suite, name)}
        pairs = [pair for pair in pairs if pair[1] in chosen]
    if not pairs:
        sys.exit("no scripts: say --set or --script")

    pairs = [pair for pair in pairs if not any(fnmatch.fnmatch(pair[1], pattern) for pattern in options.without)]
    known = {(mode, key(*pair)): suite.known(mode, key(*pair)) for pair in pairs for mode in MODES}
    if options.new:
        pairs = [pair for pair in pairs if not known["replvfs", key(*pair)]]
    if options.judge:
        pairs = [pair for pair in pairs if known["replvfs", key(*pair)]]
    # The longest first.
    pairs.sort(key=lambda pair: -(known["replvfs", key(*pair)] or {"seconds": 30})["seconds"])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    expected = expected_differences()
    results = {mode: {} for mode in MODES}
    surprising, gone = [], []

    def both(pair):
        name = key(*pair)
        for mode in MODES:
            before = known[mode, name]
            if before and (options.judge or (mode == "plain" and options.known)):
                results[mode][name] = before
            else:
                results[mode][name] = runner.run(mode, *pair)
                if mode == "plain" or not options.own_faults:
                    suite.remember(mode, name, results[mode][name])
        plain, other = (results[mode][name] for mode in MODES)
        surprises, missing = judge(name, plain, other, expected, options.own_faults)
        with runner.lock:
            if surprises:
                surprising.append(name)
            gone.extend((name, row) for row in missing)
            if surprises or not same(plain, other):
                sign = "DIFFERS" if surprises else "expected"
                print(f"{sign:9} {name}: {describe(plain, other)} ({plain['seconds']} s, {other['seconds']} s)", flush=True)
            if surprises:
                for case in [case for case in surprises if case in other["verdicts"]][:4]:
                    verdict = other["verdicts"][case]
                    print(f"            {case}\n              expected {verdict.get('expected', '')}\n              got      {verdict.get('got', '')}", flush=True)

    begin = time.monotonic()
    with ThreadPoolExecutor(options.jobs) as pool:
        try:
            list(pool.map(both, pairs))
        except KeyboardInterrupt:
            # Under the lock, so that no script starts behind it.
            with runner.lock:
                for leader in runner.started:
                    end_session(leader)
                suite.testfixture.unlink()
                os._exit(130)
    suite.testfixture.unlink()
    for name, row in gone:
        print(f"GONE      {name}: {row[1]} does not differ any more; remove it from expected.txt")
    table(suite, results)
    print(f"{len(pairs)} scripts in {time.monotonic() - begin:.0f} s on {options.jobs} at a time")
    for mode in MODES:
        total = results[mode].values()
        print(
            f"{mode:8} {sum(r['cases'] or 0 for r in total)} cases, {sum(r['errors'] or 0 for r in total)} errors, "
            f"{sum(r['cases'] is None for r in total)} scripts that did not end, {sum(r['seconds'] for r in total):.0f} s"
        )
    print(f"{len(surprising)} scripts differ unexpectedly, {len(gone)} expected differences have gone")
    sys.exit(1 if surprising or gone else 0)


def table(suite, results):
    """results/table.txt: every script."""
    lines = [f"{'script':40} {'cases':>8} {'plain':>6} {'replvfs':>8}  differs"]
    for name in sorted(results["plain"]):
        plain, other = results["plain"][name], results["replvfs"][name]
        differs = "" if same(plain, other) else describe(plain, other)
        shown = [str(value) if value is not None else "-" for value in (plain["cases"], plain["errors"], other["errors"])]
        lines.append(f"{name:40} {shown[0]:>8} {shown[1]:>6} {shown[2]:>8}  {differs}".rstrip())
    (suite.results / "table.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
