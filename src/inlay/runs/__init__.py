"""What remains of a run, and what is done with it.

run         `Run`, the folder;  history: its metrics;  listing: many of them
opened      a run, an adapter or a model, by its name;  sides: several over one base
asked       what they are asked;  together: compared and measured;  talk: one after the other;  exports
report      the page
"""
