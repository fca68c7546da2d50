"""``python -m ldm``: the command line, as launchers of several processes want it."""

from ldm.cli import main

if __name__ == "__main__":
    main()
