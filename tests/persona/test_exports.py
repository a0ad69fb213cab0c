"""Importing ``persona``: what it gives, and that it does nothing else."""

import os
import subprocess
import sys
from importlib import import_module

import pytest

import persona
from persona.runtime import ENVIRONMENT


def clean(code: str) -> str:
    """What ``code`` prints in a process without the variables that Persona sets."""
    environment = {name: value for name, value in os.environ.items() if name not in ENVIRONMENT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    return done.stdout.strip()


def test_an_import_sets_no_variable_and_loads_no_torch():
    code = (
        "import os, sys\nbefore = dict(os.environ)\nimport persona\ndir(persona)\n"
        "heavy = {'torch', 'numpy', 'safetensors'} & set(sys.modules)\n"
        "print(dict(os.environ) == before, sorted(heavy))"
    )
    assert clean(code) == "True []"


def test_configure_sets_the_environment_before_it_loads_torch():
    code = (
        "import os\nimport persona\nfrom persona import runtime\n"
        "import sys\n"
        "class Watch:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'torch': print(os.environ.get('OMP_WAIT_POLICY'))\n"
        "sys.meta_path.insert(0, Watch())\n"
        "runtime.configure()\nimport torch\nprint(torch.get_num_threads())"
    )
    assert clean(code).split() == ["PASSIVE", "1"]


@pytest.mark.parametrize("name", persona.__all__)
def test_every_name_is_the_one_of_its_module(name):
    assert getattr(persona, name) is getattr(import_module(persona._MODULES[name]), name)
    assert name in dir(persona)


def test_all_lists_every_exported_name():
    assert set(persona.__all__) == set(persona._MODULES)


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="has no attribute 'Editor'"):
        persona.Editor  # noqa: B018
