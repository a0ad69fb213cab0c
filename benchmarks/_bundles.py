"""A recommender bundle with drawn weights, for benchmarks whose numbers training does not change.

python -m benchmarks._bundles FOLDER [--host sasrec] [--items 3700] [--seed 0]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from persona import runtime

runtime.configure()

import torch  # noqa: E402

from persona.editor import EditorConfig, ParameterEditor  # noqa: E402
from persona.prototypes import fit_bank  # noqa: E402
from recsys.hosts import HostConfig, make_host  # noqa: E402
from recsys.personalised import Personalised  # noqa: E402
from recsys.serving.release import Release  # noqa: E402

PROTOTYPES = 8
CONTEXTS = 512
HEAD_SCALE = 0.1


def make_recommender(kind: str, n_items: int, seed: int = 0) -> Release:
    """A host in preset ``paper`` with an editor whose heads do something, and a bank of eight prototypes."""
    torch.manual_seed(seed)
    host = make_host(HostConfig.preset(kind, "paper", n_items))
    config = EditorConfig(context_dim=host.context_dim)
    editor = ParameterEditor(config, host.adaptive.specs, host.adaptive.weight_scales())
    with torch.no_grad():
        host.embedding.embeddings["item"].weight.mul_(20)
        for parameter in editor.heads.parameters():
            parameter.normal_(std=HEAD_SCALE)
    ids = [str(i) for i in range(1, n_items + 1)]
    titles = [f"Film {i}" for i in range(1, n_items + 1)]
    model = Personalised(host, editor)
    plain = Release(model, ids, titles)
    histories = torch.randint(1, n_items + 1, (CONTEXTS, host.config.max_length)).tolist()
    bank = fit_bank(editor, plain.codes(plain.context(histories)), PROTOTYPES).bank
    return Release(model, ids, titles, {"settings": {"seed": seed}}, bank)


def main() -> None:
    """Write one bundle."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--host", default="sasrec")
    parser.add_argument("--items", type=int, default=3700)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    make_recommender(arguments.host, arguments.items, arguments.seed).compile().save(arguments.folder)


if __name__ == "__main__":
    main()
