"""What a recipe will do, before anything is trained: rows, sizes, memory, time, and what is wrong.

check       `check`, and `Check`, what it found;  text: as people read it
rehearsal   one step without weights;  estimates: memory and time of it;  machine: what there is
"""
