"""`connect("ray://…")` where there is no Ray, and what is said where Ray is reached and the coordinator is not."""

from __future__ import annotations

import pytest

from tensoryard.client.ray_address import unreached
from tensoryard.errors import ConfigError

GUARDED = f"tcp://10.0.0.5:7077?key={'A' * 43}&secret={'B' * 43}"


def test_a_name_is_checked_before_anybody_is_asked():
    """What is no name of a cluster is an error at once."""
    import tensoryard as ty

    with pytest.raises(ConfigError, match="a cluster's name is"):
        ty.connect("ray://127.0.0.1:1?name=no%20name")


def test_what_to_do_is_said_without_the_secret():
    """A port to open, or a tunnel, and where the keys are found; nothing where Ray was not asked."""
    text = unreached("ray://head:10001?name=mine", GUARDED)
    assert "ssh -N -L 7077:10.0.0.5:7077 HEAD" in text
    assert "tensoryard address --ray-address ray://head:10001" in text
    assert "B" * 43 not in text
    assert unreached("tcp://10.0.0.5:7077?plain", GUARDED) == ""
    assert unreached("ray://head:10001", "unix:///run/x.hub") == ""
