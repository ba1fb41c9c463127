"""``python -m epistream.commands``: the command line where the ``epistream`` script is not on the PATH."""

from epistream.commands import main

if __name__ == "__main__":
    main()
