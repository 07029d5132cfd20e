"""What this module added to Slicer's Python, by a record written at each installation: so that it can go again.

Only what was not there before is in the record: nothing that Slicer or another extension brought is ever removed.
"""

import csv
import importlib.metadata
import json
import logging
import os
import re
import sysconfig

_RECORD = "semanticgan-added.json"  # beside the packages: it lives and dies with that Python


def folder():
    """Where pip installs to."""
    return sysconfig.get_paths()["purelib"]


def distributions():
    """All that is installed."""
    return importlib.metadata.distributions()


def canonical(name):
    """The one spelling of a package's name (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def present():
    """{name: distribution} of all that is installed; of two of a name the one that Python imports."""
    found = {}
    for distribution in distributions():
        name = distribution.metadata["Name"]
        if name:
            found.setdefault(canonical(name), distribution)
    return found


def versions():
    """{name: version} of all that is installed."""
    return {name: distribution.version for name, distribution in present().items()}


def record():
    """{name: version} of what this module added and is still there; empty when it added nothing, or does not know.

    What is not installed in that very version is no package of ours: the file may be of another Python, or changed.
    """
    try:
        with open(os.path.join(folder(), _RECORD), encoding="utf-8") as file:
            packages = json.load(file)["packages"]
        there = versions()
        return {name: version for name, version in packages.items() if there.get(name) == version}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def remember(before, told, ours=()):
    """Write down what pip has added since ``before``, which were the ``versions`` then, and forget what has gone.

    told: names that this pip said it installs; another extension, or Slicer, may have installed others meanwhile.
    ours: names that belong to this module although an older version of them was there.
    """
    now = versions()
    known = record()
    known.update({name: now[name] for name in now if name in told and name not in before or name in ours})
    path = os.path.join(folder(), _RECORD)
    try:
        if not known:
            if os.path.exists(path):
                os.remove(path)
            return
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump({"packages": known}, file, indent=1, sort_keys=True)
        os.replace(path + ".part", path)
    except OSError as error:  # without it nothing can be removed later; what was installed works
        logging.warning("SemanticGAN: %s", error)


def removable():
    """{name: version} of what can go: added by this module, unchanged since, needed by no package of others."""
    found = present()
    going = {name for name, version in record().items() if name in found and found[name].version == version}
    while True:
        kept = {name for name in found if name not in going}
        needed = going & {wanted for name in kept for wanted in _requires(found[name])}
        if not needed:
            return {name: found[name].version for name in sorted(going)}
        going -= needed


def _requires(distribution):
    from packaging.requirements import InvalidRequirement, Requirement

    for line in distribution.requires or ():
        try:
            wanted = Requirement(line)
        except InvalidRequirement:
            continue
        if wanted.marker is None or wanted.marker.evaluate({"extra": ""}):
            yield canonical(wanted.name)


def sizes(names):
    """Bytes on disk of some packages, one between two ``yield``; for ``process.Steps``."""
    found, total = present(), 0
    yield
    for name in names:
        if name in found:
            rows = csv.reader((found[name].read_text("RECORD") or "").splitlines())
            total += sum(int(row[2]) for row in rows if len(row) > 2 and row[2].isdecimal())
        yield
    return total
