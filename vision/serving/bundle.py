"""The folder that a classifier is kept in, and what is read of it without torch; nothing in it has to be unpickled.

    bundle.json             format, settings, classes, digests, metrics, lineage
    host.safetensors        the host's parameters and running statistics
    reader.safetensors      the scale of the context (absent, as the editor, if the bundle is the host alone)
    editor.safetensors      the editor's parameters
    bank/                   the prototype bank (see ``persona.prototypes``; absent if there is none)
    compiled/               what answers are made with (see ``vision.serving.compile``)

``vision.serving.release`` writes it.
"""

from __future__ import annotations

from persona.bundles import BundleFormat

HEADER, READER = "bundle.json", "reader.safetensors"
_ENTRIES = ("host", "image_shape", "classes", "context", "editor", "digests", "bank_version", "info")
HEADER_OF = BundleFormat("persona-vision-bundle", HEADER, {1: _ENTRIES}, "run `persona vision release` first")
# Images that an editor reads at most, where the settings do not say.
CONTEXT_IMAGES = 20
