"""The public surface is what `__all__` says, of the package and of every room."""

import importlib.metadata
import pkgutil
import subprocess
import sys

import pytest

import graftwork

ROOMS = [m.name for m in pkgutil.iter_modules(graftwork.__path__) if m.ispkg]


def test_every_name_of_the_package_resolves_to_its_room() -> None:
    for name in graftwork.__all__:
        assert getattr(graftwork, name) is not None
    assert dir(graftwork) == sorted(graftwork.__all__)


def test_lazy_names_and_type_checked_names_agree() -> None:
    import ast
    from pathlib import Path

    tree = ast.parse(Path(graftwork.__file__).read_text())
    block = next(node for node in tree.body if isinstance(node, ast.If))
    checked = {
        alias.asname: (node.module.removeprefix("graftwork."), alias.name)
        for node in block.body
        for alias in node.names
    }
    assert checked == graftwork._HOME


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'adopt'"):
        graftwork.adopt  # noqa: B018


def test_version_is_that_of_the_installed_package() -> None:
    assert graftwork.__version__ == importlib.metadata.version("graftwork")


def test_version_costs_nothing_before_it_is_asked_for() -> None:
    code = "import graftwork; print('__version__' in vars(graftwork))"
    asked = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert asked.stdout.strip() == "False"


@pytest.mark.parametrize("room", ROOMS)
def test_all_of_a_room_is_its_visible_surface(room: str) -> None:
    module = importlib.import_module(f"graftwork.{room}")
    visible = {
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and type(value).__name__ != "module"
    }
    assert visible == set(module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)
