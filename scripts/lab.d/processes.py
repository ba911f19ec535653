"""Runs commands and long-lived processes of one lab, and ends only what it started itself."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path


class LabError(Exception):
    """What the operator reads when a step fails; one sentence, with what to do where that is known."""


def run(argv, *, check=True, stdin=None, timeout=60, cwd=None):
    """Runs a command to its end and returns it with captured output."""
    try:
        done = subprocess.run(
            [str(a) for a in argv],
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=cwd,
            check=False,
        )
    except FileNotFoundError as error:
        raise LabError(f"{argv[0]} is not installed; run scripts/setup as root") from error
    except subprocess.TimeoutExpired as error:
        raise LabError(f"no end after {timeout} s: {' '.join(map(str, argv))}") from error
    if check and done.returncode != 0:
        text = (done.stderr or done.stdout).strip()
        raise LabError(f"{' '.join(map(str, argv))}: exit {done.returncode}: {text}")
    return done


def wait_until(what, probe, timeout, alive=None):
    """Polls `probe` until it returns something true; the deadline is an error, and so is a process that ends meanwhile."""
    deadline = time.monotonic() + timeout
    last = None
    while True:
        try:
            if result := probe():
                return result
        except LabError as error:
            last = error
        if alive is not None:
            alive()
        if time.monotonic() > deadline:
            raise LabError(f"{what}: not within {timeout:g} s" + (f" ({last})" if last else ""))
        time.sleep(0.05)


def start_time(pid):
    """When the kernel started `pid`, in ticks: with the pid it names one process for ever. None if there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def command_line(pid):
    """What `pid` runs, as one string; empty if there is none."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return ""


class State:
    """What a lab has made, written down before each step, so that `down` can undo a crashed one."""

    def __init__(self, folder, data):
        self.folder = Path(folder)
        self.data = data

    @classmethod
    def create(cls, folder, **data):
        folder = Path(folder)
        (folder / "processes").mkdir(parents=True)
        state = cls(folder, {**data, "owner": [os.getpid(), start_time(os.getpid())], "ready": False, "kept": False})
        state.save()
        return state

    @classmethod
    def load(cls, folder):
        path = Path(folder) / "state.json"
        try:
            return cls(folder, json.loads(path.read_text()))
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def save(self):
        path = self.folder / "state.json"
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(self.data, indent=1))
        fresh.replace(path)

    def owner_lives(self):
        """Whether another process that still runs will take this lab down itself."""
        pid, started = self.data["owner"]
        return not self.data["kept"] and pid != os.getpid() and start_time(pid) == started

    @property
    def processes(self):
        """Names of the recorded processes. Each has a file of its own: several commands may drive one lab at a time."""
        return sorted(path.stem for path in (self.folder / "processes").glob("*.json"))

    def _record_path(self, name):
        return self.folder / "processes" / f"{name}.json"

    def _record(self, name):
        try:
            return json.loads(self._record_path(name).read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None

    def start(self, name, argv, log, namespace):
        """Starts a long-lived process in a namespace; its output goes to `log`."""
        argv = ["ip", "netns", "exec", namespace, *map(str, argv)]
        with open(log, "ab") as out:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.adopt(name, process.pid, log)

    def adopt(self, name, pid, log):
        """Writes down a process that was started, so that `stop` knows it."""
        self._record_path(name).write_text(json.dumps({"pid": pid, "started": start_time(pid), "log": str(log)}))

    def pid(self, name):
        """Of a process that was started."""
        return self._record(name)["pid"]

    def forget(self, name):
        """Drops a process that has ended."""
        self._record_path(name).unlink(missing_ok=True)

    def is_ours(self, record):
        """Whether the recorded process still runs and is the one that was started."""
        if record["started"] is None or start_time(record["pid"]) != record["started"]:
            return False
        # Each of them names a file of this lab's folder.
        return str(self.folder) in command_line(record["pid"])

    def ensure_alive(self, name):
        """An error, with the end of its log, if the process has ended."""
        record = self._record(name)
        if record is not None:
            reap(record["pid"])
        if record is None or start_time(record["pid"]) != record["started"]:
            log = self.folder / f"{name}.log" if record is None else record["log"]
            raise LabError(f"{name} has ended; the end of {log}:\n{tail(log)}")

    def stop(self, name, timeout=10.0, number=signal.SIGTERM):
        """Ends a process and forgets it. False if it did not run any more or had to be killed."""
        record = self._record(name)
        if record is None:
            self.forget(name)
            return False
        reap(record["pid"])
        clean = self.is_ours(record)
        if clean:
            os.kill(record["pid"], number)
            deadline = time.monotonic() + timeout
            while start_time(record["pid"]) == record["started"]:
                if time.monotonic() > deadline:
                    os.kill(record["pid"], signal.SIGKILL)
                    clean = False
                    deadline += timeout
                reap(record["pid"])
                time.sleep(0.02)
        self.forget(name)
        return clean


def reap(pid):
    """Collects a child that has ended."""
    try:
        os.waitpid(pid, os.WNOHANG)
    except ChildProcessError:
        pass


def tail(path, lines=20):
    """The end of a log, indented."""
    try:
        text = Path(path).read_text(errors="replace").splitlines()
    except FileNotFoundError:
        return "    (no log)"
    return "\n".join("    " + line for line in text[-lines:]) or "    (empty)"
