"""`import lorentzkit` stays light: what only some users need is loaded when they first use it."""

import subprocess
import sys

import pytest

HEAVY = ("triton", "geoopt", "scipy", "matplotlib", "transformers", "tokenizers", "PIL")


def heavy_modules_after(statement: str) -> set[str]:
    """The names in HEAVY that a fresh interpreter has loaded once it ran `statement`."""
    report = f"import sys; print(*[name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", f"{statement}\n{report}"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(done.stdout.split())


@pytest.mark.few(module="lorentzkit.ops")
@pytest.mark.parametrize(
    "module", ["lorentzkit", "lorentzkit.ops", "lorentzkit.viz", "lorentzkit.compat.meru"]
)
def test_import_loads_nothing_heavy(module: str) -> None:
    assert heavy_modules_after(f"import {module}") == set()


@pytest.mark.thorough
def test_the_check_can_fail() -> None:
    assert heavy_modules_after("import lorentzkit, geoopt") >= {"geoopt", "scipy"}
    assert heavy_modules_after("import lorentzkit, matplotlib") >= {"matplotlib"}
    assert heavy_modules_after("import lorentzkit.clip") >= {"transformers", "tokenizers"}


def test_without_geoopt_the_manifold_says_what_to_install() -> None:
    """And all else works."""
    code = """
import sys
sys.modules["geoopt"] = None  # as if it were not installed
import lorentzkit, lorentzkit.losses, lorentzkit.viz, lorentzkit.testing
lorentzkit.Lorentz(1.0)
try:
    import lorentzkit.manifolds
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == (
        "lorentzkit.manifolds needs geoopt: pip install 'lorentzkit[geoopt]'"
    )


def test_version_is_the_installed_one() -> None:
    from importlib.metadata import version

    import lorentzkit

    assert lorentzkit.__version__ == version("lorentzkit")
