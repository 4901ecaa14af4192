"""``python -m mmvicreg``, so that ``torchrun -m mmvicreg train ...`` works."""

from mmvicreg.cli import main

if __name__ == "__main__":
    main()
