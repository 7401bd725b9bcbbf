"""`python -m covidseg` is the same as `covidseg`."""

from covidseg.cli import main

if __name__ == "__main__":
    main(prog_name="covidseg")
