import pytest

from .tiny import make_modules, write_checkpoint


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny"), make_modules())


@pytest.fixture
def model(tiny_path):
    from lib_lycoris.studio.checkpoint import load_checkpoint
    return load_checkpoint(tiny_path, device="cpu")
