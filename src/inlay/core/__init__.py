"""The mechanism: views, adapted hosts, targets. torch only. Explained in `README.md` beside this file."""
