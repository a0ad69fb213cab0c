import pytest

from persona.device import DeviceBundle
from tests.persona.device.world import make_bundle
from tests.persona.prototypes.world import HEADS


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    """Bundles by head of the editor; copied before they are changed."""
    root = tmp_path_factory.mktemp("device")
    return {head: make_bundle(root / head, head) for head in HEADS}


@pytest.fixture(scope="session")
def bundles(folders):
    return {head: DeviceBundle.load(folder) for head, folder in folders.items()}
