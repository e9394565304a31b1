"""`python -m inlay`: the command line, for launchers that start a module (`torchrun -m inlay train recipe.yaml`)."""

from inlay.cli import main

if __name__ == "__main__":
    main()
