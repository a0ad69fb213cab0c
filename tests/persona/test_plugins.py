"""Methods of others: by their place, and by what installed packages declare."""

import pytest

from persona.errors import ConfigError
from persona.plugins import code_digest, declared, function, is_place


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory with a module in it, from which modules are imported for this test alone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", [*__import__("sys").path])
    return tmp_path


def test_a_function_of_the_working_directory_is_found_and_its_code_is_known(here):
    (here / "mine_here.py").write_text("def train(problem):\n    return problem + 1\n\nnothing = 3\n")
    assert is_place("mine_here:train")
    assert not is_place("popularity")
    assert function("mine_here:train")(2) == 3
    before = code_digest("mine_here:train")
    (here / "mine_here.py").write_text("def train(problem):\n    return problem + 2\n")
    assert code_digest("mine_here:train") != before
    with pytest.raises(ConfigError, match="--methods: mine_here:nothing is no function: name one as"):
        function("mine_here:nothing")


@pytest.mark.parametrize("place", ["no_such_module_at_all:train", "math:no_such_function", ":train", "math:"])
def test_what_cannot_be_loaded_is_one_sentence(here, place):
    with pytest.raises(ConfigError, match=f"--methods: {place} cannot be loaded .*my_package.module:train"):
        function(place)


def test_installed_packages_declare_methods_and_cannot_replace_others(here, monkeypatch):
    (here / "mine_declared.py").write_text("def train(problem):\n    return problem * 2\n")
    info = here / "mine-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mine\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[persona.recsys.methods]\nmine = mine_declared:train\nhost = mine_declared:train\n"
        "[persona.vision.methods]\nbroken = mine_declared:missing\n"
    )
    monkeypatch.syspath_prepend(str(here))
    found = declared("persona.recsys.methods", {"host"})
    assert list(found) == ["mine"]
    assert found["mine"](4) == 8
    broken = declared("persona.vision.methods", ())["broken"]
    with pytest.raises(
        ConfigError, match=r"entry point 'broken' of the group persona.vision.methods: mine_declared:missing"
    ):
        broken(1)
