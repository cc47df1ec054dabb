"""`python -m torchdfa`, and the `torchdfa` command."""

from __future__ import annotations

import sys

# Import names of the libraries of the "train" extra.
_EXTRA = {"lightning_fabric", "matplotlib", "numpy", "PIL", "pooch", "rich", "safetensors", "sklearn", "typer"}


def main() -> int:
    """Run the command line; say how to install what it needs where that is missing."""
    try:
        from torchdfa import cli

        return cli.main()
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        print(f"torchdfa: this command needs {error.name}: pip install 'torchdfa[train]'", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while libraries were still loading
        print("torchdfa: stopped before it began", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
