"""Faults by place, not by time. Python imports this module in every process whose PYTHONPATH names this folder.

FAULTS lists what is to happen, as JSON: ``[{"process": "app.worker", "place": "app.worker.tune:export_bundle", "call": 1,
"when": "before", "act": "KILL", "spent": "file"}]``. The process whose command line holds ``process``, where it comes to that
call of the function ``module:name``, sends itself the signal ``act``, or fails with that errno (``ENOSPC``); once over all
processes, since the file ``spent`` is made.
The product is run as it is, and knows nothing of this.
"""

import errno
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import signal
import sys
from importlib.abc import MetaPathFinder


def install(fault):
    """Put ``fault`` where it belongs: at once, or as soon as its module is imported."""
    module, _, name = fault["place"].partition(":")
    if module in sys.modules:
        wrap(sys.modules[module], name, fault)
    else:
        sys.meta_path.insert(0, Later(module, name, fault))


class Later(MetaPathFinder):
    """Finds one module as the others would, and wraps a function of it once it has been executed."""

    def __init__(self, module, name, fault):
        self.module, self.name, self.fault = module, name, fault

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            wrap(module, self.name, self.fault)

        spec.loader.exec_module = exec_module
        return spec


def wrap(module, name, fault):
    *path, last = name.split(".")
    home = functools.reduce(getattr, path, module)
    function, calls = getattr(home, last), itertools.count(1)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        due = next(calls) == fault.get("call", 1)
        if due and fault.get("when", "before") == "before":
            strike(fault)
        result = function(*args, **kwargs)
        if due and fault.get("when") == "after":
            strike(fault)
        return result

    setattr(home, last, wrapped)


def strike(fault):
    try:
        with open(fault["spent"], "x") as spent:
            spent.write(str(os.getpid()))
    except FileExistsError:
        return
    if fault["act"].startswith("E"):
        number = getattr(errno, fault["act"])
        raise OSError(number, os.strerror(number))
    os.kill(os.getpid(), getattr(signal, f"SIG{fault['act']}"))


command = " ".join(sys.orig_argv)
for one in json.loads(os.environ.get("FAULTS", "[]")):
    if one["process"] in command:
        install(one)
if "app.worker" in command:  # beside other tests a worker of low priority would wait for the processor most of the time
    os.nice = lambda _: 0
    write_text = pathlib.Path.write_text
    pathlib.Path.write_text = lambda path, *args, **options: 0 if path.name == "autogroup" else write_text(path, *args, **options)
