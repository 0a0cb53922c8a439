"""The shards that tests of the training example train on."""

from pathlib import Path

import pytest
from pictures import shard


@pytest.fixture
def shards(tmp_path: Path) -> str:
    for i in range(4):
        shard(tmp_path / f"{i:05d}.tar", 16 * i)
    return f"{tmp_path}/{{00000..00003}}.tar"
