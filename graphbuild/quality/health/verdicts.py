"""Figures judged: what is good, and why. The limits are rules of thumb, and stand beside every figure.

A limit that a small graph, a small k or a column cannot meet is moved to what can be met, or there is no verdict.
"""

from __future__ import annotations

from graphbuild.quality.health.result import Measure, Unit, Verdict

HUBNESS_SOURCE = "Radovanović, Nanopoulos, Ivanović: Hubs in Space, JMLR 11 (2010)"


FEWEST_TEXTS = 100
"""Texts from which shares of texts are judged."""


def judge(value: float, good: float, fair: float) -> Verdict:
    """Return good up to (or, where good > fair, down to) one limit, fair to the next, else poor."""
    sign = 1 if good <= fair else -1
    return "good" if sign * value <= sign * good else "fair" if sign * value <= sign * fair else "poor"


def _make(
    key: str,
    title: str,
    value: float,
    verdict: Verdict,
    good: str,
    why: str,
    *,
    unit: Unit = "share",
    shuffled: float | None = None,
) -> Measure:
    return Measure(key=key, title=title, value=value, unit=unit, shuffled=shuffled, verdict=verdict, good=good, why=why)


def certified(share: float, method: str) -> Measure:
    """Judge the share of rows whose neighbours are proven to be the nearest."""
    if method == "import":
        why = "The edges were imported: they are what their source says, and nothing proves them nearest."
        return _make("certified", "rows proven exact", 0.0, "info", "not for imported edges", why)
    why = "Every row carries a proof that no nearer text was missed, or was computed again in float64. `graphbuild verify` checks."
    return _make("certified", "rows proven exact", share, judge(share, 1, 1), "100 %", why)


def near_duplicates(share: float) -> Measure:
    """Judge the share of texts that have a twin."""
    why = "Twins fill each other's rows, and samples that mean the same count as different. Merge or drop some if there are many."
    return _make("near_duplicates", "texts with a neighbour ≥ 0.98", share, judge(share, 0.02, 0.2), "≤ 2 %", why)


def isolated(share: float, limit: float, chance: float) -> Measure:
    """Judge texts that no other is like; `chance` is the share that few texts have by chance alone."""
    why = "No other text is nearer to them than one random pair in twenty is: noise, another language, or a rare topic."
    title = f"isolated texts (nearest < {limit:.2f})"
    if chance > 0.01:
        why += f" With so few texts a share of {chance:.0%} is chance."
        return _make("isolated", title, share, "info", "no limit with so few texts", why)
    return _make("isolated", title, share, judge(share, 0.01, 0.05), "≤ 1 %", why)


def uncovered(share: float) -> Measure:
    """Judge texts in a language or script that the encoder's vocabulary hardly knows."""
    why = (
        "Half of their pieces or letters are unknown to the encoder's vocabulary, or their words are spelled from fragments: "
        "another language than the encoder's. Such texts are neighbours by script and language, not by meaning, and some become "
        "one text. Take a multilingual encoder, such as `graphbuild embed --encoder paraphrase-multilingual-MiniLM-L12-v2`."
    )
    return _make("uncovered", "texts the encoder hardly knows", share, judge(share, 0.03, 0.1), "≤ 3 %", why)


def orphans(share: float, shuffled: float) -> Measure:
    """Judge the share of texts in no row but their own."""
    why = "No other text counts them as a neighbour, so they are a positive for nobody."
    # With a small k chance alone leaves texts out: e^-k of them.
    good = max(0.02, 2 * shuffled)
    verdict = judge(share, good, max(0.1, 2 * good))
    return _make("orphans", "texts in nobody's row", share, verdict, f"≤ {good:.0%}", why, shuffled=shuffled)


def hubness(skew: float, shuffled: float) -> Measure:
    """Judge the skewness of the in-degree over the first ten ranks."""
    why = (
        "A few texts near to everything ('a photo', 'untitled') become a positive for all. Above 1.4 counts as high hubness "
        f"({HUBNESS_SOURCE}). Look at the hubs; drop what says nothing."
    )
    verdict = judge(skew, 1.4, 5)
    return _make("hub_skew", "in-degree skewness at 10", skew, verdict, "≤ 1.4", why, unit="number", shuffled=shuffled)


def largest_hub(times: float, shuffled: float) -> Measure:
    """Judge the most frequent neighbour."""
    why = "In how many rows the most frequent neighbour is, as a multiple of the mean."
    good = max(10.0, 2 * shuffled)
    verdict = judge(times, good, 5 * good)
    return _make("largest_hub", "largest in-degree ÷ mean", times, verdict, f"≤ {good:.3g}", why, unit="number", shuffled=shuffled)


def mutual(share: float, shuffled: float) -> Measure:
    """Judge the share of edges that go both ways."""
    why = "If i is near to j, j should be near to i. Few mutual edges mean hubs, or dense clusters beside sparse ones."
    if shuffled >= 0.5:
        return _make("mutual", "mutual edges", share, "info", "no limit where most pairs are stored", why, shuffled=shuffled)
    return _make("mutual", "mutual edges", share, judge(share, 0.5, 0.25), "≥ 50 %", why, shuffled=shuffled)


def chaining(share: float, shuffled: float, n_texts: int) -> Measure:
    """Judge the largest component at 0.9."""
    why = "Chains of near duplicates at similarity 0.9; a large one is a template with small changes, repeated through the data."
    title = "largest component at 0.9"
    if n_texts < FEWEST_TEXTS:
        return _make("component_90", title, share, "info", "no limit with so few texts", why, shuffled=shuffled)
    # A handful of texts is no chain.
    good = max(0.01, 5 / n_texts)
    return _make("component_90", title, share, judge(share, good, 10 * good), f"≤ {good:.0%} of the texts", why, shuffled=shuffled)


def contrast(value: float) -> Measure:
    """Judge how far the last stored neighbour stands out."""
    why = (
        "Median similarity at the last rank, less the 95 % quantile of random pairs. Below zero the last ranks are no nearer "
        "than chance, and a smaller k would do."
    )
    return _make("contrast", "last rank above random pairs", value, judge(value, 0, -0.1), "≥ 0", why, unit="number", shuffled=0.0)


def truncated(share: float, shuffled: float, tau_s: float, has_sketch: bool) -> Measure:
    """Judge the target's mass beyond k."""
    if has_sketch:
        verdict: Verdict = "good" if share <= 0.5 else "fair"
        why = "What the stored rows leave out of a softmax over all texts. The sketch stands in for it, so this costs little."
    else:
        verdict = judge(share, 0.05, 0.3)
        why = "What the stored rows leave out of a softmax over all texts. There is no sketch: --absent decides what it counts as."
    title = f"target mass beyond k, tau_s {tau_s:g}"
    return _make("truncated_mass", title, share, verdict, "≤ 50 % with a sketch, ≤ 5 % without", why, shuffled=shuffled)


def hit_rate(value: float, batch_size: int, shuffled: float) -> Measure:
    """Judge the stored neighbours per anchor in a random batch."""
    verdict: Verdict = "good" if value >= 1 else "fair" if value >= 0.1 else "poor"
    why = (
        "Stored neighbours that an anchor meets in a random batch. Below 0.1 what absent pairs count as makes the target: "
        "draw batches of neighbours."
    )
    title = f"hit rate, batch of {batch_size:,}"
    return _make("hit_rate", title, value, verdict, "≥ 1", why, unit="number", shuffled=shuffled)


def own_view(mass: float, tau_s: float) -> Measure:
    """Judge the target's mass on the other view."""
    verdict: Verdict = "good" if 0.1 <= mass <= 0.9 else "fair"
    why = "The target's share on the other view of the same image, in a random batch. At 1 this is SimCLR; at 0 views do not count."
    return _make("own_view_mass", f"own-view mass, tau_s {tau_s:g}", mass, verdict, "10 % to 90 %; choose tau_s by it", why)


def purity(column: str, k: int, share: float, shuffled: float, within_reach: float) -> Measure:
    """Judge neighbours of the same label; `within_reach` is the share that classes of these sizes can fill."""
    why = f"Neighbours that have the text's own {column}. Near the shuffled value, the captions say nothing about it."
    title, key = f"same {column} at {k}", f"purity_{column}_{k}"
    if within_reach <= 2 * shuffled:
        return _make(key, title, share, "info", f"no limit: at most {within_reach:.0%} can be", why, shuffled=shuffled)
    lift = (share - shuffled) / (within_reach - shuffled)
    good = f"a third of the way from shuffled to {within_reach:.0%}"
    return _make(key, title, share, judge(lift, 1 / 3, 0.1), good, why, shuffled=shuffled)


def group_found(column: str, share: float, shuffled: float, within_reach: float, k: int) -> Measure:
    """Judge captions of one picture among the neighbours; `within_reach` is the share of such groups that k places hold."""
    why = "Of a text's own group (captions of one picture), the share among its neighbours: does the encoder see what they share?"
    title = f"same {column} found in {k:,}"
    good = within_reach / 2
    return _make("group_found", title, share, judge(share, good, 0.4 * good), f"≥ {good:.0%}", why, shuffled=shuffled)


def group_first(column: str, share: float, shuffled: float) -> Measure:
    """Report how many nearest neighbours are from the same group."""
    why = "Texts whose nearest neighbour is of their own group. Other pictures may fairly be nearer: compare encoders by it."
    return _make(
        "group_first", f"nearest has the same {column}", share, "info", "no limit; to compare encoders", why, shuffled=shuffled
    )


def wordnet(correlation: float, shuffled: float) -> Measure:
    """Judge the rank correlation with WordNet."""
    why = "Spearman correlation, a row at a time, of similarity with nearness in WordNet: do the names' meanings order the classes?"
    verdict = judge(correlation, 0.4, 0.2)
    return _make("wordnet", "agreement with WordNet", correlation, verdict, "≥ 0.4", why, unit="number", shuffled=shuffled)
