"""``python -m atm``"""

from atm.cli import main

if __name__ == "__main__":
    main(prog_name="atm")
