"""`python -m bigft`: the same as the `bigft` command."""

from bigft.cli import main

if __name__ == "__main__":
    main()
