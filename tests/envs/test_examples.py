"""The examples in docstrings of `esrl.envs` run, and give what they say."""

import doctest

import pytest

from esrl.envs import inspection, registry, to_gymnasium
from esrl.envs.checks import environment


@pytest.mark.parametrize("module", [environment, inspection, registry, to_gymnasium])
def test_examples_run(module):
    found = doctest.testmod(module)
    assert found.attempted > 0 and found.failed == 0
