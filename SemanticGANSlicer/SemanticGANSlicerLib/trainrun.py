"""A training that goes on beside Slicer: started, followed, paused, resumed, and found again after Slicer was closed.

The folder of a run holds: source/ (the scans), cohort/ (what ``sgan-data`` makes of them), model/ (of ``sgan-train``),
and train.json (what was started), events.jsonl (what training says), log.txt (its other output), stop (asks it to
pause).
"""

import json
import math
import os
import re
import subprocess
import sys
import time

import qt
from slicer.i18n import tr as _

# states of a run
NONE, STARTING, RUNNING, PAUSING, PAUSED, DONE, FAILED = (
    "none",
    "starting",
    "running",
    "pausing",
    "paused",
    "done",
    "failed",
)
ACTIVE = (STARTING, RUNNING, PAUSING)

_PIECE = 128 << 10  # bytes of events read between two events of Qt
_EVERY_MSEC = 500
_SILENCE_S = 60  # training says something every 10 s; after this it is dead
_LONGEST_LINE = 1 << 20  # bytes; a longer "line" is no message of ours
_MOST = (1 << 31) - 1  # of counts, as Qt takes them
_LOG_TAIL = 4000  # bytes of the log that an error shows
_STOPPED = 3  # exit code: saved on request
_MOST_POINTS = 20000  # of a curve


class TrainRun:
    """The training in a folder. Made for a folder, it finds out what is or was going on there.

    What lies there may be of another computer, or written by anybody.
    python(): the interpreter; arguments(): of the command, before its options; onChange(): called when anything
    below has changed. status: one of the states above; progress: (done, total, message, seconds left or None);
    message, details: why it failed; curves: {"dice" or "loss": (stage, [(images, value), ...])}; pictures: {"samples"
    or "validation": path}; bundle: the model so far, or "".
    """

    def __init__(self, folder, python, arguments, onChange):
        self.folder, self._python, self._arguments, self._onChange = folder, python, arguments, onChange
        self.record = _readRecord(self._path("train.json"))
        self._child = None
        self._forget()
        self._timer = qt.QTimer()
        self._timer.setInterval(0)
        self._timer.timeout.connect(self._look)
        if self.record is not None:
            self._timer.start()

    def _forget(self):
        """As before the first event."""
        self.status = NONE if self.record is None else STARTING
        self.progress, self.message, self.details = (0, 0, "", None), "", ""
        self.curves, self.pictures, self.bundle = {}, {}, ""
        self.isFound = False  # whether all that was written so far has been read
        self._stage, self._pid, self._wasDead = "", None, False
        self._silentS = (
            0.0  # since training was heard last, while we listened: clocks jump, and computers sleep
        )
        self._offset, self._line = 0, b""

    def _path(self, *names):
        return os.path.join(self.folder, *names)

    def isActive(self):
        return self.status in ACTIVE

    def canResume(self):
        return self.record is not None and self.status in (PAUSED, FAILED)

    def canGoOn(self):
        """Whether the student is ready and the other stages can follow."""
        return self.record is not None and self.status == DONE and self.record["stage"] == "student"

    def hasChanged(self):
        """Whether something else, such as a second Slicer, has been at work in the folder since this looked last."""
        if self.isActive() or self.record is not None and not self.isFound:
            return False  # what there is comes with the next look
        record = _readRecord(self._path("train.json"))
        if record is None or self.record is None:
            return record is not self.record
        return record != self.record or self._size() != self._offset

    # --- what a person does

    def start(self, modality, labelled, stage, minutes):
        """Train anew on the cohort; minutes: limit of a student alone, 0: none. Raises OSError, RuntimeError."""
        number, output = 1, "model"
        while os.path.exists(self._path(output)):
            number += 1
            output = f"model{number}"
        record = {"modality": modality, "labelled": labelled, "stage": stage, "minutes": minutes}
        self._begin(dict(record, output=output, taken=False))

    def resume(self, stage, minutes):
        """Go on with what was paused, failed or, for another stage, done. Raises OSError, RuntimeError."""
        self._begin(dict(self.record, stage=stage, minutes=minutes, taken=False), new=False)

    def pause(self):
        """Ask training to save and end; it is PAUSED when it has."""
        if self.status in (STARTING, RUNNING):
            with open(self._path("stop"), "w", encoding="utf-8"):
                pass
            self.status = PAUSING
            self._onChange()

    def taken(self):
        """Whether the finished model was handed on before; from now on it was."""
        before = self.record["taken"]
        if not before:
            self.record["taken"] = True
            self._writeRecord(self.record)
        return before

    def forget(self):
        """The data are made anew: nothing here is to be resumed."""
        self._timer.stop()
        if self.record is not None:
            os.remove(self._path("train.json"))
        self.record, bundle = None, self.bundle
        self._forget()
        self.bundle = bundle  # it still segments

    def close(self):
        """Look no more, once and for all. Training goes on."""
        self._timer.stop()
        self._timer.deleteLater()  # as ``process.Worker`` lets go

    def refuseChanged(self):
        """Raise RuntimeError, and follow what goes on, when ``hasChanged``: two trainings would mix their files."""
        if self.hasChanged():
            self.record, self._child = _readRecord(self._path("train.json")), None
            self._forget()
            self._timer.setInterval(0)
            self._timer.start()
            raise RuntimeError(
                _("Another Slicer has meanwhile used {folder}. What goes on there is shown now.").format(
                    folder=self.folder
                )
            )

    def _begin(self, record, new=True):
        if self.isActive():
            raise RuntimeError(_("A training is under way in {folder}.").format(folder=self.folder))
        self.refuseChanged()
        program, options = self._python(), self._options(record)
        if os.path.exists(self._path("stop")):
            os.remove(self._path("stop"))
        self._writeRecord(record)
        self.record = record
        if new:
            self._forget()
        try:
            self._child = _startApart(
                [program, *self._arguments(), *options],
                self._path("events.jsonl"),
                self._path("log.txt"),
                new,
            )
        except OSError as error:
            self.status, self.message, self.isFound = FAILED, str(error), True
            raise
        _children.append(self._child)
        self.status, self.message, self.details, self._pid, self._wasDead = STARTING, "", "", None, False
        self.progress, self.isFound = (0, 0, _("Starting: loading PyTorch"), None), True
        self._timer.setInterval(_EVERY_MSEC)
        self._timer.start()
        self._onChange()

    def _options(self, record):
        output = self._path(record["output"])
        options = ["--modality", record["modality"], "--data", self._path("cohort"), "--output", output]
        options += ["--labelled", str(record["labelled"]), "--stage", record["stage"]]
        if record["stage"] == "student" and record["minutes"]:
            options += ["--max-minutes", str(record["minutes"])]
        options += ["--json-progress", "--low-priority", "--stop-file", self._path("stop")]
        if os.path.exists(
            os.path.join(output, "config.yaml")
        ):  # else it had not come far enough to go on from
            options.append("--resume")
        return options

    def _writeRecord(self, record):
        making = self._path("train.json.part")
        with open(making, "w", encoding="utf-8") as file:
            json.dump(record, file, indent=1)
        os.replace(making, self._path("train.json"))

    # --- what training says

    def _look(self):
        """Read the next piece of events; at their end see whether training still lives."""
        piece = self._read()
        *lines, self._line = (self._line + piece).split(b"\n")
        for line in lines:
            try:
                event = json.loads(line)
                self._take(event["event"], event)
            except (ArithmeticError, AttributeError, KeyError, RecursionError, TypeError, ValueError):
                continue  # no message of ours
        if len(self._line) > _LONGEST_LINE:
            self._line = b""
        self._hear(piece)
        if len(piece) == _PIECE:  # there is more; it is shown when all is read
            self._timer.setInterval(0)
            return
        changed = bool(lines) or not self.isFound
        isDead = self.isActive() and not self._isAlive()
        if isDead and not self._wasDead:  # its last words may have come after the reading
            self._wasDead = True
            self._timer.setInterval(0)
            return
        if isDead:
            changed = True
            self.status = FAILED
            self.message = _(
                "Training ended without a word, as happens when memory runs out or the computer is "
                "switched off. Resume goes on from what was saved last."
            )
            self.details = self._logTail()
        self.isFound = True
        self._timer.setInterval(_EVERY_MSEC)
        if not self.isActive():
            self._timer.stop()
        if changed:
            self._onChange()

    def _hear(self, piece):
        """Count for how long nothing came."""
        if piece:
            self._silentS = 0.0 if self.isFound else self._age()
        elif self.isFound and not self._wasDead:
            self._silentS += _EVERY_MSEC / 1000
        elif not self._offset:
            self._silentS = self._age()

    def _age(self):
        """Seconds since something was written; the clock of who wrote it may be ahead."""
        try:
            return abs(time.time() - os.path.getmtime(self._path("events.jsonl")))
        except OSError:
            return math.inf

    def _size(self):
        try:
            return os.path.getsize(self._path("events.jsonl"))
        except OSError:
            return 0

    def _read(self):
        try:
            with open(self._path("events.jsonl"), "rb") as file:
                file.seek(self._offset)
                piece = file.read(_PIECE)
        except OSError:
            return b""
        self._offset += len(piece)
        return piece

    def _take(self, name, event):
        if name == "hello":
            self._pid, self.status, self.message, self.details = _count(event["pid"]), STARTING, "", ""
            self.progress = (0, 0, _("Starting: loading PyTorch"), None)
        elif name == "progress":
            self._stage, left = event["stage"], event.get("eta_s")
            left = None if left is None or not math.isfinite(left) else float(left)
            done, total = self._share(_count(event["done"]), _count(event["total"]), left)
            self.progress = (done, total, f"{stageName(self._stage)}: {event['message']}", left)
            self._goesOn()
        elif name == "start":
            self._goesOn()
        elif name == "validation":
            self._point("dice", event, event["dice"])
        elif name == "log":
            self._point("loss", event, event["loss"] if "loss" in event else event["image_g"])
        elif name == "picture":
            self.pictures[str(event["kind"])] = self._here(event["path"])
        elif name == "bundle":
            self.bundle = self._here(event["path"])
        elif name == "done":
            self.status = DONE
            self.bundle = self._here(event["bundle"]) if event.get("bundle") else self.bundle
        elif name == "error":
            self.status = PAUSED if event["code"] == _STOPPED else FAILED
            if self.status == FAILED:
                self.message = str(event["message"])
                self.details = "\n\n".join(filter(None, (str(event.get("details") or ""), self._logTail())))

    def _here(self, path):
        """What training has written, below its output: its path was another where the folder was moved since.

        Raises ValueError for what lies elsewhere.
        """
        names = re.split(r"[/\\]", path)
        inside = names[len(names) - names[::-1].index(self.record["output"]) :]
        if not inside or ".." in inside:
            raise ValueError(path)
        return self._path(self.record["output"], *inside)

    def _share(self, done, total, left):
        """(done, total) of the stage; a student whose time is limited ends long before its last image."""
        limit = 60.0 * self.record["minutes"]
        if (
            self._stage != "student"
            or self.record["stage"] != "student"
            or not limit
            or not total
            or left is None
        ):
            return done, total
        return round(1000 * max(done / total, 1.0 - left / limit)), 1000

    def _goesOn(self):
        self.status = PAUSING if os.path.exists(self._path("stop")) else RUNNING

    def _point(self, name, event, value):
        """A point of a curve, which is that of one stage; a resumed one goes back a little."""
        value, images, stage = float(value), int(event["images"]), str(event["stage"])
        known, points = self.curves.get(name, ("", []))
        if known != stage:
            points = []
        while points and points[-1][0] >= images:
            points.pop()
        if len(points) < _MOST_POINTS and math.isfinite(value):
            points.append((images, value))
        self.curves[name] = (stage, points)

    def curve(self):
        """(what, points) of the curve to look at: DICE on validation patients where there are some, else the loss."""
        for name in ("dice", "loss"):
            stage, points = self.curves.get(name, ("", []))
            if points and (stage == self._stage or name == "dice" and not self.isActive()):
                return name, points
        return "", []

    def _isAlive(self):
        for child in _children:
            child.poll()
        if self._child is not None:
            return self._child.poll() is None
        if self._pid is not None and sys.platform != "win32":  # where signal 0 would end it
            try:
                os.kill(self._pid, 0)
            except ProcessLookupError:
                return False
            except PermissionError:
                return False  # the number is somebody else's by now
        return self._silentS < _SILENCE_S

    def _logTail(self):
        try:
            with open(self._path("log.txt"), "rb") as file:
                file.seek(max(0, os.path.getsize(self._path("log.txt")) - _LOG_TAIL))
                return file.read().decode("utf-8", "replace").strip()
        except OSError:
            return ""


_children = []  # asked for their exit code, so that none stays as a zombie


def stageName(stage):
    """A stage of training in words."""
    names = {
        "prepare": _("Preparing the slices"),
        "student": _("Student"),
        "gan": _("GAN"),
        "encoder": _("Encoder"),
        "trust": _("Calibrating trust"),
    }
    return names.get(stage, stage)


def _readRecord(path):
    try:
        with open(path, encoding="utf-8") as file:
            record = json.load(file)
        kinds = {"modality": str, "labelled": int, "stage": str, "minutes": int, "output": str, "taken": bool}
        if (
            all(type(record[name]) is kind for name, kind in kinds.items())
            and re.fullmatch("[a-z]+", record["modality"])
            and re.fullmatch("model[0-9]*", record["output"])
            and record["stage"] in ("student", "all")
            and 0 < record["labelled"] <= _MOST
            and 0 <= record["minutes"] <= _MOST
        ):
            return record
    except (OSError, KeyError, RecursionError, TypeError, ValueError):
        pass
    return None


def _count(value):
    """A number of things. Raises OverflowError, TypeError or ValueError for anything else."""
    if not 0 <= int(value) <= _MOST:
        raise ValueError(value)
    return int(value)


def _startApart(command, events, log, new):
    """Start a program that outlives Slicer. QProcess cannot tell how a detached process ended, this can."""
    environment = dict(os.environ, PYTHONUTF8="1", PYTHONSAFEPATH="1")
    if sys.platform == "win32":
        apart = {"creationflags": subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP}
    else:
        apart = {"start_new_session": True}
    with open(events, "wb" if new else "ab") as output, open(log, "wb" if new else "ab") as errors:
        return subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=environment,
            **apart,
        )
