"""The compiled answer to a single history is the answer."""

import numpy as np
import pytest
import torch

from persona.editor import EditorConfig, ParameterEditor
from persona.errors import FormatError
from recsys.bundle import COMPILED
from recsys.hosts import HostConfig, make_host
from recsys.personalised import Personalised
from recsys.recommender import Recommender

ITEMS = 60
LENGTH = 6


def recommender(kind):
    torch.manual_seed(3)
    host = make_host(HostConfig.preset(kind, "paper", ITEMS, dim=8, max_length=LENGTH))
    config = EditorConfig(context_dim=host.context_dim, width=8)
    editor = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales())
    for parameter in [*host.parameters(), *editor.parameters()]:
        torch.nn.init.normal_(parameter, std=0.4)
    return Recommender(Personalised(host, editor), [f"i{n}" for n in range(1, ITEMS + 1)])


@pytest.fixture(scope="module", params=["gru4rec", "sasrec"])
def pair(request, tmp_path_factory):
    """The same bundle, eager and compiled, the latter after a way through its folder."""
    folder = tmp_path_factory.mktemp("bundle") / "bundle"
    recommender(request.param).compile().save(folder)
    return recommender(request.param), Recommender.load(folder)


@pytest.mark.parametrize("length", range(1, LENGTH + 3))
def test_compiled_answers_equal_eager_ones(pair, length):
    eager, compiled = pair
    assert compiled.compiled is not None
    rng = np.random.default_rng(length)
    history = [f"i{n}" for n in rng.integers(1, ITEMS + 1, length)]
    for options in ({}, {"seen": True}, {"exclude": ["i1", "i2"]}, {"k": ITEMS}):
        one, two = eager.recommend(history, **options), compiled.recommend(history, **options)
        assert [item.item_id for item in one.items] == [item.item_id for item in two.items]
        assert [i.score for i in one.items] == pytest.approx([i.score for i in two.items], abs=1e-4)
        assert one.level == two.level == "edit"
        assert one.edit_norm == pytest.approx(two.edit_norm, rel=1e-4)


def test_what_is_not_a_single_edited_history_stays_eager(pair):
    eager, compiled = pair
    assert compiled.recommend([]) == eager.recommend([])
    assert compiled.recommend(["i3"], level="host") == eager.recommend(["i3"], level="host")
    assert compiled.recommend_many([["i3"], ["i4", "i5"]]) == eager.recommend_many([["i3"], ["i4", "i5"]])


def test_a_damaged_graph_is_refused(tmp_path):
    model = recommender("gru4rec")
    model.compile().save(tmp_path / "bundle")
    graph = tmp_path / "bundle" / COMPILED
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    with pytest.raises(FormatError, match=r"single\.onnx is damaged"):
        Recommender.load(tmp_path / "bundle")
    graph.unlink()
    with pytest.raises(FormatError, match=r"single\.onnx cannot be read"):
        Recommender.load(tmp_path / "bundle")


def test_hosts_that_gain_nothing_are_not_compiled():
    host = recommender("sasrec").model.host
    assert Recommender(Personalised(host), [f"i{n}" for n in range(1, ITEMS + 1)]).compile().compiled is None
    assert recommender("din").compile().compiled is None
