"""The factory: every way to name a pipeline, and an error that says what is wrong with each that names none."""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tensoryard.errors import ConfigError
from tensoryard.proto.pipeline import Pipeline
from tensoryard.workers.factory import build_pipeline, find_factory

from .support import deployment_of

PIPELINE = """
import tensoryard as ty

class Ours(ty.Pipeline):
    origin = ORIGIN
    def __init__(self, **options):
        self.options = options
    def execute(self, inputs):
        return {}
    def release(self, request_id):
        pass

    @classmethod
    def made(cls, **options):
        return cls(**options)

def create(**options):
    return Ours(**options)

def nothing(**options):
    return 7

number = 7
"""


@pytest.fixture(autouse=True)
def _clean_imports() -> Iterator[None]:
    """Modules and search paths of a test go with it."""
    modules, paths = set(sys.modules), list(sys.path)
    yield
    sys.path[:] = paths
    for name in set(sys.modules) - modules:
        del sys.modules[name]


def written(folder: Path, name: str = "mine.py", *, before: str = "") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    file = folder / name
    file.write_text(before + PIPELINE.replace("ORIGIN", repr(str(folder))))
    return file


def test_a_module_and_a_function(tmp_path, monkeypatch):
    """ "package.module:factory" imports the module and calls the factory with the options."""
    written(tmp_path / "pack", "inner.py")
    monkeypatch.syspath_prepend(tmp_path)
    pipeline = build_pipeline(deployment_of("pack.inner:create", options={"a": 1, "b": [2]}))
    assert isinstance(pipeline, Pipeline)
    assert pipeline.options == {"a": 1, "b": [2]}


def test_a_file_and_a_function(tmp_path, monkeypatch):
    """ "file.py:factory" runs a file that is in no package, by a whole path or from the working folder."""
    file = written(tmp_path)
    assert build_pipeline(deployment_of(f"{file}:create")).origin == str(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert build_pipeline(deployment_of("mine.py:create")).origin == str(tmp_path)
    assert build_pipeline(deployment_of("./mine.py:create")).origin == str(tmp_path)


def test_a_class_is_a_factory(tmp_path):
    """What is called may be the class itself, or a method of it."""
    file = written(tmp_path)
    assert build_pipeline(deployment_of(f"{file}:Ours", options={"a": 1})).options == {"a": 1}
    assert build_pipeline(deployment_of(f"{file}:Ours.made", options={"a": 2})).options == {"a": 2}


def test_two_files_of_one_name_are_two_modules(tmp_path):
    """Files called alike in different folders do not take each other's place, not even for pickle."""
    first = build_pipeline(deployment_of(f"{written(tmp_path / 'one')}:create"))
    second = build_pipeline(deployment_of(f"{written(tmp_path / 'two')}:create"))
    assert (first.origin, second.origin) == (str(tmp_path / "one"), str(tmp_path / "two"))
    assert type(first) is not type(second)
    for pipeline in (first, second):
        assert type(pickle.loads(pickle.dumps(pipeline))) is type(pipeline)


def test_a_file_is_no_rival_of_an_installed_module(tmp_path):
    """A file called like a module that others import does not take its name."""
    file = written(tmp_path, "numpy.py")
    assert build_pipeline(deployment_of(f"{file}:create")).origin == str(tmp_path)
    assert hasattr(importlib.import_module("numpy"), "ndarray")


def test_a_file_may_import_what_lies_beside_it(tmp_path):
    """As from a script: `import helper_of_mine`, and `from . import` as well."""
    (tmp_path / "helper_of_mine.py").write_text("word = 'absolute'\n")
    (tmp_path / "near.py").write_text("word = 'relative'\n")
    before = "import helper_of_mine\nfrom . import near\nfrom .near import word\n"
    file = written(tmp_path, "with.dot and blank.py", before=before)
    factory = find_factory(f"{file}:create")
    scope = factory.__globals__
    assert (scope["helper_of_mine"].word, scope["near"].word, scope["word"]) == ("absolute", "relative", "relative")


def test_what_lies_beside_a_file_never_hides_what_is_installed(tmp_path):
    """A neighbour called like a module of the standard library, or of ours, leaves that module alone."""
    (tmp_path / "colorsys.py").write_text("raise RuntimeError('a neighbour was taken for the real one')\n")
    (tmp_path / "tensoryard.py").write_text("raise RuntimeError('a neighbour was taken for the real one')\n")
    file = written(tmp_path, before="import colorsys\n")
    assert callable(find_factory(f"{file}:create").__globals__["colorsys"].rgb_to_hsv)


def test_relative_imports_of_two_folders_do_not_mix(tmp_path):
    """Each file gets its own neighbour of the same name."""
    for folder in ("one", "two"):
        file = written(tmp_path / folder, before="from .near import word\n")
        (file.parent / "near.py").write_text(f"word = {folder!r}\n")
        assert find_factory(f"{file}:create").__globals__["word"] == folder


def test_a_file_that_fails_leaves_no_half_made_module(tmp_path):
    """What the file raises passes through, and the next try runs it anew."""
    file = written(tmp_path, before="raise RuntimeError('not today')\n")
    for _ in range(2):
        before = set(sys.modules)
        with pytest.raises(RuntimeError, match="not today"):
            find_factory(f"{file}:create")
        assert set(sys.modules) == before
    written(tmp_path)
    assert callable(find_factory(f"{file}:create"))


@pytest.fixture
def installed(tmp_path, monkeypatch) -> None:
    """A distribution with entry points of the group of pipelines."""
    written(tmp_path, "dist_module.py")
    info = tmp_path / "dist_of_mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dist-of-mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[tensoryard.pipelines]\n"
        "good-one = dist_module:create\n"
        "a-number = dist_module:number\n"
        "no-module = there_is_no_such_module:create\n"
        "no-function = dist_module:there_is_no_such_function\n"
    )
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("installed")
def test_an_entry_point():
    """A name without a colon is an entry point of group `tensoryard.pipelines`."""
    assert build_pipeline(deployment_of("good-one", options={"a": 3})).options == {"a": 3}


@pytest.mark.usefixtures("installed")
@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("unheard-of", "'unheard-of' is neither .* nor one of the installed .*'good-one'"),
        ("mine.py", "'mine.py' is neither 'module:factory', 'file.py:factory' nor"),
        ("a-number", "'a-number' names a int, which cannot be called"),
        ("no-module", "'no-module' cannot be loaded: No module named 'there_is_no_such_module'"),
        ("no-function", "'no-function' cannot be loaded: .*there_is_no_such_function"),
    ],
)
def test_a_bad_entry_point_is_named(text, problem):
    """Unknown, broken or no function: a ConfigError that quotes the name."""
    with pytest.raises(ConfigError, match=problem):
        find_factory(text)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("there_is_no_such_module:create", "No module named 'there_is_no_such_module'; install it"),
        ("{file}.missing.py:create", "mine.py.missing.py does not exist on this host"),
        ("{folder}:create", "No module named"),
        ("{file}:missing", "has no function 'missing'"),
        ("{file}:Ours.missing", "has no function 'Ours.missing'"),
        ("{file}:", "has no function ''"),
        ("{file}:number", "names a int, which cannot be called"),
        (":create", "'' is the name of no module"),
        (".mine:create", "'.mine' is the name of no module"),
    ],
)
def test_a_bad_text_is_named(tmp_path, text, problem):
    """Missing module, file or function, something that is no function: a ConfigError that says which."""
    file = written(tmp_path)
    with pytest.raises(ConfigError, match=problem):
        find_factory(text.format(file=file, folder=tmp_path))


def test_a_module_that_lacks_something_says_what(tmp_path, monkeypatch):
    """A pipeline's own missing dependency is the one that the error names."""
    written(tmp_path, "needy.py", before="import there_is_no_such_library\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="'needy:create': No module named 'there_is_no_such_library'"):
        find_factory("needy:create")


def test_a_factory_must_make_a_pipeline(tmp_path):
    """Something else is refused by its type."""
    with pytest.raises(ConfigError, match=r"mine.py:nothing made a int, not a tensoryard.Pipeline"):
        build_pipeline(deployment_of(f"{written(tmp_path)}:nothing"))


def test_a_wrong_option_is_what_the_factory_raises(tmp_path):
    """The factory's own error reaches the caller, with the option's name."""
    file = written(tmp_path)
    file.write_text(file.read_text() + "\ndef strict(*, size):\n    return Ours()\n")
    with pytest.raises(TypeError, match="colour"):
        build_pipeline(deployment_of(f"{file}:strict", options={"size": 1, "colour": 2}))
