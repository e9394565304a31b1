"""What a run is told: every setting, its base and its rows, checked before anything is trained.

recipe      `Recipe`; `sections`: its keys; `schema`: the same for editors
base        the base and its tokenizer;  trained: with what is trained
rows        rows to train on and held out;  findings: what is wrong with them
"""
