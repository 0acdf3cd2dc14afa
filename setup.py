"""What pyproject.toml can't say: where an editable install finds the package, and a README for where no clone is around it."""

import re
import sys
from pathlib import Path

from setuptools import setup

ROOT = Path(__file__).parent

# `adapters/` is installed as `functional_optim.adapters`. For an editable install of such a mapping setuptools writes an import
# hook, which Python follows, but no type checker and no editor. Through the symbolic links in .editable/ and functional_optim/
# the package lies as it is installed elsewhere, so that a path does; and as .editable/ holds nothing else, nothing else of the
# clone becomes importable. Where there are no such links (an sdist; Windows, most often), the hook has to do.
MAPPED = {"functional_optim": "functional_optim", "functional_optim.adapters": "adapters"}
is_linked = (ROOT / ".editable" / "functional_optim" / "adapters" / "__init__.py").exists()
is_editable = "editable_wheel" in sys.argv

# An index shows the README alone: what links to a file beside it says where the file is.
readme = re.sub(r"\[([^]]+)\]\((?!https?:)([^)]+)\)", r"\1 (`\2`)", (ROOT / "README.md").read_text(encoding="utf-8"))

setup(
    package_dir={"": ".editable"} if is_linked and is_editable else MAPPED,
    long_description=readme,
    long_description_content_type="text/markdown",
)
