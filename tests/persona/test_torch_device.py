from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from persona import torch_device
from persona.errors import ConfigError
from persona.torch_device import CPU, autocast, device_of, generators, moved, on_cpu, resolve, set_generators
from recsys.config import RecsysConfig
from recsys.methods.problem import Problem
from tests.recsys.toy import walks
from vision.config import VisionConfig

META = torch.device("meta")


@dataclass(frozen=True)
class Record:
    tensor: torch.Tensor
    positions: np.ndarray
    nothing: None = None


def test_the_cpu_can_always_be_had():
    assert resolve("cpu") == CPU
    assert resolve("cpu", "it cannot") == CPU
    assert resolve("auto", "a card cannot be used") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a graphics card")
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_without_a_card_auto_is_the_cpu_and_a_card_is_refused_in_one_sentence(name):
    assert resolve("auto") == CPU
    with pytest.raises(ConfigError, match=f"device is {name}, but torch finds no graphics card.*: give --device cpu"):
        resolve(name)
    with pytest.raises(ConfigError, match=f"device is {name}, but tables stay behind: give --device cpu"):
        resolve(name, "tables stay behind")


def test_a_sharded_table_is_no_work_for_a_card():
    config = RecsysConfig(table_optimizer="rowwise_adagrad", device="cuda")
    with pytest.raises(ConfigError, match="rowwise_adagrad keeps its table on the CPU: give --device cpu"):
        Problem(walks(5), config)


def test_records_move_with_all_their_tensors_and_nothing_else():
    record = Record(torch.ones(2), np.arange(2))
    there, (same, number) = moved((record, (torch.ones(1), 7)), META)
    assert there.tensor.device == same.device == META
    assert there.positions is record.positions
    assert number == 7
    assert moved(record, CPU) is record


@pytest.mark.parametrize("config", [RecsysConfig, VisionConfig])
def test_neither_setting_is_in_a_record_that_has_its_default_and_the_device_in_no_key(config):
    usual, moved_there = config(), config(device="cuda:1")
    assert not {"device", "precision"} & usual.as_dict().keys()
    assert moved_there.as_dict() == usual.as_dict() | {"device": "cuda:1"}
    assert moved_there.host_settings() == usual.host_settings()
    assert moved_there.editor_settings() == usual.editor_settings()
    assert config(precision="bf16").host_settings() == usual.host_settings() | {"precision": "bf16"}
    assert config.from_dict(moved_there.as_dict()) == moved_there


@pytest.mark.parametrize("config", [RecsysConfig, VisionConfig])
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"device": "gpu"}, "unknown device 'gpu': give auto, cpu, cuda, or cuda:1"),
        ({"precision": "bf-16"}, "unknown precision 'bf-16': did you mean 'bf16'"),
    ],
)
def test_what_is_no_device_or_precision_is_refused(config, given, sentence):
    with pytest.raises(ConfigError, match=sentence):
        config(**given)


def test_only_what_lies_elsewhere_is_copied():
    net = nn.Linear(2, 2)
    assert on_cpu(net) is net
    assert device_of(net) == CPU


def test_generators_go_on_where_they_were():
    states = generators(CPU)
    assert set(states) == {"generator"}
    first = torch.rand(3)
    set_generators(states, CPU)
    assert torch.equal(torch.rand(3), first)


def test_float32_enters_no_autocast():
    x = torch.rand(2, 2)
    with autocast(CPU, "float32"):
        assert not torch.is_autocast_enabled("cpu")
        assert (x @ x).dtype == torch.float32
    with autocast(CPU, "bf16"):
        assert (x @ x).dtype == torch.bfloat16


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
def test_a_card_is_found_and_its_generator_kept():
    device = resolve("auto")
    assert device.type == "cuda"
    assert torch_device.resolve("cuda") == device
    states = generators(device)
    first = torch.rand(3, device=device)
    set_generators(states, device)
    assert torch.equal(torch.rand(3, device=device), first)
    assert all(p.device == CPU for p in on_cpu(nn.Linear(2, 2).to(device)).parameters())
