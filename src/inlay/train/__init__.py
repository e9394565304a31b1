"""Training from a recipe: one file says everything, one folder keeps everything.

    recipe = Recipe.load("recipe.yaml")        # inlay.train.recipe: checked here, once
    run = train(recipe)                        # inlay.train.run: resumes by itself, exactly
    model, tokenizer = run.load()              # inlay.train.runs: what remains of a run

`docs/train.md` has the keys.
"""
