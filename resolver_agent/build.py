"""Makes the man pages and completions when a wheel is built: ``python -m resolver_agent.build FOLDER``, or setuptools.

They are in the wheel as files below ``share``, so the installed program never needs this module.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from setuptools.command.build_py import build_py

_PACKAGE = Path(__file__).parent


class BuildPy(build_py):
    """Builds the package, and adds what is made to the files of the distribution."""

    def run(self) -> None:
        """Build, then make the files in another process: this one cannot import the package."""
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib).with_name("usage")
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "resolver_agent.build", folder.resolve()], cwd=_PACKAGE.parent, check=True
        )
        made = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        self.distribution.data_files = [
            *(self.distribution.data_files or ()),
            *((str(path.parent.relative_to(folder)), [str(path)]) for path in made),
        ]


def files(readme: str, node_readme: str, *, date: str) -> dict[str, str]:
    """Return the files by their paths below the prefix of an installation; ``date`` is that of the man pages.

    Raises:
        ValueError: a README lacks a section that a page is made from.
    """
    from resolver_agent import __version__, cli  # noqa: PLC0415 -- setuptools loads this module alone
    from resolver_agent.routing.state import AlertCode  # noqa: PLC0415
    from resolver_agent.usage import completion, man  # noqa: PLC0415

    parser = cli.command_line()
    name = parser.prog
    completions = completion.Completion(parser, words={"CODE": [code.value for code in AlertCode]})
    return {
        f"share/man/man8/{name}.8": man.program(
            parser, version=__version__, date=date, readme=readme, node_readme=node_readme
        ),
        f"share/man/man5/{name}.yml.5": man.configuration(name, version=__version__, date=date, readme=readme),
        f"share/bash-completion/completions/{name}": completions.bash(),
        f"share/zsh/site-functions/_{name}": completions.zsh(),
        f"share/fish/vendor_completions.d/{name}.fish": completions.fish(),
    }


def write(folder: Path) -> None:
    """Write the files below a folder."""
    texts = [
        path.read_text(encoding="utf-8") for path in (_PACKAGE.with_name("README.md"), _PACKAGE / "systemd/README.md")
    ]
    seconds = float(os.environ.get("SOURCE_DATE_EPOCH", time.time()))  # a build may have to be repeatable
    for path, text in files(*texts, date=time.strftime("%Y-%m-%d", time.gmtime(seconds))).items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
