"""Training from a recipe: one file says everything, one folder keeps everything.

    recipe = Recipe.load("recipe.yaml")        # inlay.recipe.recipe: checked here, once
    run = train(recipe)                        # inlay.train.training: resumes by itself, exactly
    model, tokenizer = run.load()              # inlay.runs.run: what remains of a run
    run.compare(["..."]); run.evaluate()       # inlay.runs.together: runs, adapters, models, over one base

`docs/train.md` has the keys.
"""
