"""The protocol of text contexts: a check by members that runs none of them."""

from __future__ import annotations

import dataclasses

from tensoryard.proto.text_context import TextContext
from tensoryard.proto.text_protocol import TextGenerationContext

from .text_samples import context_of


def test_weakness_28_isinstance_runs_nothing():
    """The check looks members up by name; no property of the object runs."""
    ran = []
    members = [name for name in dir(TextContext) if not name.startswith("_")]
    members += [field.name for field in dataclasses.fields(TextContext)]
    body = {name: property(lambda self, name=name: ran.append(name)) for name in members}
    watched = type("Watched", (), body)
    assert isinstance(watched(), TextGenerationContext)
    assert ran == []
    del body["reset"]
    assert not isinstance(type("Short", (), body)(), TextGenerationContext)


def test_weakness_28_attributes_of_the_object_count():
    """What only the object has is seen too, object by object."""
    kind = type("Plain", (), {})
    one = kind()
    one.__dict__.update(dict.fromkeys((*dir(TextContext), *vars(context_of()))))
    assert isinstance(one, TextGenerationContext)
    assert not isinstance(kind(), TextGenerationContext)


def test_a_class_may_inherit_the_protocol():
    """Then isinstance goes by the class, as for any other."""

    class Own(TextGenerationContext):
        pass

    assert not isinstance(context_of(), Own)
