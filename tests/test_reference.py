"""Tests that the reference of the documentation has every public name, once."""

import re
from types import ModuleType

import pytest
import reference_pages

import jaxrnn


def test_the_reference_has_every_public_name_once(tmp_path):
    reference_pages.write_pages(tmp_path)
    text = "".join(path.read_text() for path in tmp_path.iterdir())
    entries = re.findall(r"^\.\. (?:auto|py:)\w+:: ([\w.]+)", text, re.MULTILINE)
    assert len(entries) == len(set(entries))
    seen = {id(get(name)) for name in entries}
    for module in reference_pages.modules(jaxrnn):
        assert (tmp_path / f"{module.__name__}.md").is_file()
        for name in reference_pages.public_names(module):
            assert id(getattr(module, name)) in seen, f"{module.__name__}.{name}"


def get(name: str) -> object:
    value: object = jaxrnn
    for part in name.split(".")[1:]:
        value = getattr(value, part)
    return value


def test_a_public_name_that_no_table_of_contents_has_fails_the_build():
    module = ModuleType("module", "A module.\n\nThings:\n    listed    a thing")
    vars(module).update(listed=len, forgotten=len, __all__=["listed", "forgotten"])
    with pytest.raises(ValueError, match="the docstring of module does not list forgotten"):
        reference_pages.groups(module)
