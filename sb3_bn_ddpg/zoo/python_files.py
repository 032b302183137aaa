"""
RL Zoo's hyperparameter files in Python, as modules that each process finds again by the file's path.

The Zoo runs such a file without making a module of it, so a class in it counts as one of ``builtins``: nothing that names the
class, as a run's ``config.yml`` does, can be read again. Here its module is ``sb3_bn_ddpg.zoo.python_files.<path>``.
"""

import copy
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import quote, unquote

import cloudpickle

__path__: list[str] = []  # so that the files can be submodules; only the finder below finds them
PREFIX = f"{__name__}."


class _Loader(Loader):
    """
    Runs a file, and remembers what was in it.

    :param file: The file
    """

    def __init__(self, file: str) -> None:
        self.file, self.source = file, b""

    def create_module(self, spec: ModuleSpec) -> None:
        """
        :param spec: How the module was found
        """

    def exec_module(self, module: ModuleType) -> None:
        """
        :param module: A new module
        """
        self.source = Path(self.file).read_bytes()
        # What it defines goes into the files of models, which then need no other file
        cloudpickle.register_pickle_by_value(module)
        exec(compile(self.source, self.file, "exec"), vars(module))


class _PathFinder(MetaPathFinder):
    """Finds the submodules of this one: each name is the quoted path of a file."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not fullname.startswith(PREFIX):
            return None
        file = unquote(fullname.removeprefix(PREFIX))
        if not os.path.isfile(file):
            raise ModuleNotFoundError(f"there is no file {file}", name=fullname, path=file)
        return spec_from_file_location(fullname, file, loader=_Loader(file))


sys.meta_path.append(_PathFinder())


def module_name(path: str) -> str:
    """
    :param path: A Python file
    :return: The name under which each process can import it
    """
    return PREFIX + quote(os.path.abspath(path)).replace(".", "%2E")


@contextmanager
def imported(path: str) -> Iterator[str]:
    """
    Import a hyperparameter file, as it is now. Within the context its ``hyperparams`` are copies, which the Zoo changes.

    :param path: The file
    :return: The name of its module, as RL Zoo's ``--conf-file`` takes it
    """
    name, source = module_name(path), Path(path).read_bytes()
    module: Any = importlib.import_module(name)
    if module.__loader__.source != source:
        del sys.modules[name]
        module = importlib.import_module(name)
    hyperparams = module.hyperparams
    module.hyperparams = copy.deepcopy(hyperparams)
    try:
        yield name
    finally:
        module.hyperparams = hyperparams


def without_path(text: str) -> str:
    """
    :param text: What ``repr`` says of an object
    :return: It without the paths of hyperparameter files, which differ from machine to machine
    """
    before, *others = text.split(PREFIX)
    return before + "".join(other.partition(".")[2] for other in others)
