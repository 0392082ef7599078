"""A virtual environment that holds this package from its wheel."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Runs a command and gives back its standard output; a failure shows all that it said."""
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{command}:\n{done.stdout}\n{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Environment:
    """A virtual environment with this package from its wheel."""

    folder: Path
    wheel: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def variables(self) -> dict[str, str]:
        """Its commands come first; no module is found in the repository; a download fails at once."""
        return {
            "PATH": f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": "",
            "HF_HUB_OFFLINE": "1",
        }

    def run(self, *command: object, cwd: Path) -> str:
        return run(*command, cwd=cwd, **self.variables)

    def pip(self, *arguments: object) -> str:
        """Runs the pip of the tests' environment on this one."""
        return run(sys.executable, "-m", "pip", "--python", self.python, *arguments, cwd=self.folder)
