"""The words of findings: nouns, adjectives and places of a radiologist's English for annotators' terms."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from xgem.data.captions import spoken
from xgem.labels.qualified import MANNERS, QualifiedFinding


@dataclass(frozen=True)
class Noun:
    """A noun as a sentence takes it: ``counted`` ones have an article; ``says_side``: nothing more is to say of it."""

    text: str
    counted: bool = False
    plural: bool = False
    says_side: bool = False

    def with_article(self, phrase: str) -> str:
        """The phrase that ends in, or is made of, this noun with the article that it needs."""
        if self.plural or not self.counted or phrase.startswith("both "):
            return phrase
        return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


Description = tuple[Noun, tuple[str, ...], str]
"""A noun, the adjectives before it, and where it is ("in the left lung base", or empty)."""

# Singular nouns of the headings that are countable; those in neither table are not (edema, scoliosis)
_COUNTED: Final = {
    "opacity": "opacity",
    "nodule": "nodule",
    "mass": "mass",
    "infiltrate": "infiltrate",
    "density": "density",
    "lucency": "lucency",
    "granuloma": "granuloma",
    "calcified granuloma": "calcified granuloma",
    "pleural effusion": "pleural effusion",
    "effusion": "pleural effusion",
    "pericardial effusion": "pericardial effusion",
    "pneumothorax": "pneumothorax",
    "hydropneumothorax": "hydropneumothorax",
    "hemopneumothorax": "hemopneumothorax",
    "deformity": "deformity",
    "osteophyte": "osteophyte",
    "catheters, indwelling": "indwelling catheter",
    "implanted medical device": "implanted medical device",
    "medical device": "medical device",
    "tube, inserted": "inserted tube",
    "foreign bodies": "foreign body",
    "hernia, hiatal": "hiatal hernia",
    "hernia": "hiatal hernia",
    "hernia, diaphragmatic": "diaphragmatic hernia",
    "nipple shadow": "nipple shadow",
    "blister": "bulla",
    "cysts": "cyst",
    "dislocations": "dislocation",
    "aortic aneurysm": "aortic aneurysm",
    "fractures, bone": "fracture",
    "stents": "stent",
    "spinal fusion": "spinal fusion",
}
_PLURALS: Final = {
    "opacity": "opacities",
    "density": "densities",
    "lucency": "lucencies",
    "deformity": "deformities",
    "mass": "masses",
    "foreign body": "foreign bodies",
    "bulla": "bullae",
    "pneumothorax": "pneumothoraces",
    "hiatal hernia": "hiatal hernias",
}
_UNCOUNTED: Final = {
    "pulmonary atelectasis": "atelectasis",
    "cicatrix": "scarring",
    "calcinosis": "calcification",
    "surgical instruments": "surgical material",
    "pulmonary congestion": "pulmonary vascular congestion",
    "thickening": "thickening",
    "pleural thickening": "pleural thickening",
    "shift": "shift",
    "subcutaneous emphysema": "subcutaneous emphysema",
}
_ALWAYS_PLURAL: Final = {"markings", "sutures", "breast implants", "expansile bone lesions"}
_OF: Final = frozenset(
    {
        *("calcinosis", "atherosclerosis", "fractures, bone", "deformity", "thickening", "scoliosis", "kyphosis"),
        *("spondylosis", "sclerosis", "osteophyte", "spinal fusion", "arthritis", "shift", "dislocations"),
        *("bone diseases, metabolic", "osteoporosis", "hyperostosis, diffuse idiopathic skeletal"),
    }
)
"""Headings of what is "of" a structure; everything else is "in" one."""
_IMPLIED: Final = {"markings": "increased", "epicardial fat": "prominent"}
_ALSO: Final = {"cardiomegaly": "enlargement of the heart", "pulmonary edema": "edema of the lungs"}

# Structures: name, plural where there is one on each side, or None
_STRUCTURES: Final[dict[str, tuple[str, str | None]]] = {
    "lung": ("lung", "lungs"),
    "base": ("lung base", "lung bases"),
    "apex": ("lung apex", "lung apices"),
    "upper lobe": ("upper lobe", "upper lobes"),
    "lower lobe": ("lower lobe", "lower lobes"),
    "hilum": ("hilum", "hila"),
    "pleura": ("pleura", "pleural spaces"),
    "pleural sinus": ("pleural sinus", "pleural sinuses"),
    "costophrenic angle": ("costophrenic angle", "costophrenic angles"),
    "cardiophrenic angle": ("cardiophrenic angle", "cardiophrenic angles"),
    "sulcus": ("costophrenic sulcus", "costophrenic sulci"),
    "diaphragm": ("hemidiaphragm", "hemidiaphragms"),
    "ribs": ("ribs", "rib cages"),
    "clavicle": ("clavicle", "clavicles"),
    "humerus": ("humerus", "humeri"),
    "shoulder": ("shoulder", "shoulders"),
    "breast": ("breast", "breasts"),
    "middle lobe": ("middle lobe", None),
    "retrocardiac": ("retrocardiac region", None),
    "supracardiac": ("supracardiac region", None),
    "paratracheal": ("paratracheal region", "sides of the trachea"),
    "cervical vertebrae": ("cervical spine", None),
    "thoracic vertebrae": ("thoracic spine", None),
    "lumbar vertebrae": ("lumbar spine", None),
    "aorta, thoracic": ("thoracic aorta", None),
    "trachea, carina": ("carina", None),
    "coronary vessels": ("coronary arteries", None),
    "pulmonary alveoli": ("alveoli", None),
    "thorax": ("chest", "sides of the chest"),
    "abdomen": ("abdomen", "sides of the abdomen"),
    "neck": ("neck", "sides of the neck"),
    "cardiac shadow": ("cardiac silhouette", None),
    "bone and bones": ("bones", None),
}
_WITHIN_LUNG: Final = frozenset(
    {"base", "apex", "upper lobe", "middle lobe", "lower lobe", "lingula", "hilum", "retrocardiac", "azygos lobe"}
)
_ADJECTIVES: Final = {"hilum": "hilar", "mediastinum": "mediastinal", "paratracheal": "paratracheal"}
# What a state is called as a noun, and as an adjective of the structure
_STATES: Final = {
    "hypoinflation": ("hypoinflation", "hypoinflated"),
    "hyperdistention": ("hyperinflation", "hyperinflated"),
    "hyperlucent": ("hyperlucency", "hyperlucent"),
    "tortuous": ("tortuosity", "tortuous"),
    "enlarged": ("enlargement", "enlarged"),
    "elevated": ("elevation", "elevated"),
    "flattened": ("flattening", "flattened"),
    "blunted": ("blunting", "blunted"),
    "obscured": ("obscuration", "obscured"),
    "prominent": ("prominence", "prominent"),
    "abnormal": ("abnormality", "abnormal"),
}
_WITH_ADVERBS: Final = ("mild", "moderate", "severe")
_SITES: Final = frozenset(
    {
        *("lung", "lung, hyperlucent", "aorta", "aorta, thoracic", "thoracic vertebrae", "spine", "lumbar vertebrae"),
        *(
            "cervical vertebrae",
            "diaphragm",
            "costophrenic angle",
            "cardiac shadow",
            "mediastinum",
            "shoulder",
            "heart",
        ),
        *(
            "pulmonary artery",
            "sulcus",
            "heart atria",
            "heart ventricles",
            "adipose tissue",
            "ribs",
            "pleura",
            "thorax",
        ),
        *("bone and bones", "humerus", "trachea", "trachea, carina", "abdomen", "lymph nodes"),
    }
)
"""Headings that name a structure, with the finding in a qualifier."""


def described(finding: QualifiedFinding) -> Iterator[Description]:
    """The ways to name a finding, the canonical one first: at least one."""
    if finding.name in _SITES:
        yield from _of_a_site(finding)
        return
    extents = finding.extents
    number = tuple(word for word in ("multiple", "scattered") if word in finding.manners)
    extra = tuple(word for word in MANNERS if word in finding.manners and word not in number)
    counted = _COUNTED.get(finding.name)
    many = counted is not None and (bool(number) or finding.side == "bilateral")
    states = tuple(word for word in finding.states if word in ("prominent", "enlarged", "abnormal", "tortuous"))
    if "degenerative" in finding.states:
        states = (*states, "degenerative")
    place, rest = _place(finding)
    adjectives = (*extents, *number, *states, *extra)
    says_side = finding.side is None or not rest
    if counted is not None:
        text = _PLURALS.get(counted, f"{counted}s") if many else counted
        noun = Noun(text, counted=True, plural=many, says_side=says_side)
    else:
        text = _UNCOUNTED.get(finding.name) or spoken(finding.name)
        if finding.name in _IMPLIED and not states:  # the heading alone says that there is more than normal
            adjectives = (*extents, *number, _IMPLIED[finding.name], *extra)
        noun = Noun(text, plural=finding.name in _ALWAYS_PLURAL, says_side=says_side)
    if finding.name == "shift" and rest and finding.side in ("left", "right"):
        noun, place = Noun(text, says_side=True), f"{place} to the {finding.side}".strip()
    yield noun, adjectives, place
    if (other := _ALSO.get(finding.name)) and not place:
        yield Noun(other, says_side=says_side), adjectives, place


def _of_a_site(finding: QualifiedFinding) -> Iterator[Description]:
    """ "Elevation of the right hemidiaphragm", "mildly elevated right hemidiaphragm"."""
    name, states = finding.name, finding.states
    if name == "lung, hyperlucent":
        name, states = "lung", ("hyperlucent", *states)
    places = tuple(place for place in finding.places if not (name == "lung" and place == "lung"))
    side = finding.side
    if name == "lung" and not places and side is None:
        side = "bilateral"
        site, plain_site, sided = "the lungs", "lungs", True
    else:
        if name == "lung" and {*places} & _WITHIN_LUNG:
            name, places = places[0], places[1:]
        site, sided = _structures((name, *places), side)
        plain_site = site.removeprefix("the ")
    says_side = side is None or sided
    extra = tuple(word for word in MANNERS if word in finding.manners)
    if "degenerative" in states:
        yield Noun(f"degenerative changes of {site}", plural=True, says_side=says_side), (*finding.extents, *extra), ""
        yield Noun(f"degenerative change of {site}", says_side=says_side), (*finding.extents, *extra), ""
        return
    known = [_STATES[state] for state in states if state in _STATES]
    if not known:
        yield Noun(f"abnormality of {site}", counted=True, says_side=says_side), (*finding.extents, *extra), ""
        return
    nouns = " and ".join(noun for noun, _ in known)
    yield Noun(f"{nouns} of {site}", says_side=says_side), (*finding.extents, *extra), ""
    if not extra and " and " not in site:
        # "mildly elevated right hemidiaphragm": the extent becomes an adverb
        adverbs = " ".join(f"{word}ly" if word in _WITH_ADVERBS else word for word in finding.extents)
        adjectives = " and ".join(adjective for _, adjective in known)
        plural = plain_site.startswith("both ") or plain_site.endswith("s")
        text = " ".join(filter(None, (adverbs, adjectives, plain_site.removeprefix("both "))))
        counted = not plural and (_is_paired(name) or name in ("heart", "aorta", "aorta, thoracic", "cardiac shadow"))
        yield Noun(text, counted=counted, plural=plural, says_side=says_side), (), ""
    if states == ("hypoinflation",) and not places and finding.side is None and not finding.extents and not extra:
        yield Noun("low lung volumes", plural=True, says_side=True), (), ""


def _is_paired(place: str) -> bool:
    return _STRUCTURES.get(place, ("", None))[1] is not None


def _place(finding: QualifiedFinding) -> tuple[str, bool]:
    """ "in the left lung base", and whether the side is still to be said."""
    if not finding.places:
        return "", finding.side is not None
    where, sided = _structures(finding.places, finding.side)
    return f"{'of' if finding.name in _OF else 'in'} {where}", finding.side is not None and not sided


def _structures(places: tuple[str, ...], side: str | None) -> tuple[str, bool]:
    """Structures in words, "the left lung base and the lingula", and whether that says the side."""
    names = list(dict.fromkeys(places))
    if "lung" in names and {*names} & _WITHIN_LUNG:
        names.remove("lung")
    within = [name for name in names if name in ("anterior", "posterior")]
    names = [name for name in names if name not in within] or ["thorax"]
    if "lymph nodes" in names and len(names) > 1:
        regions = [name for name in names if name in _ADJECTIVES]
        names = [name for name in names if name not in regions and name not in ("lymph nodes", "lung")]
        region = " and ".join(_ADJECTIVES[name] for name in regions)
        sided = side is not None and "hilum" in regions
        nodes = " ".join(filter(None, ("the", side if sided else None, region, "lymph nodes")))
        others, other_sided = _structures(tuple(names), side) if names else ("", False)
        return " and ".join(filter(None, (nodes, others))), sided or other_sided
    texts: list[str] = []
    sided = False
    for name in names:
        one, both = _STRUCTURES.get(name, (spoken(name), None))
        if name == "diaphragm" and side is None:
            one = name
        one, both = (" ".join((*within, text)) if text else None for text in (one, both))
        if both is None or side is None:
            right_middle = name == "middle lobe" and side in ("right", None)
            sided |= right_middle and side is not None
            texts.append(f"the right {one}" if right_middle else f"the {one}")
            continue
        sided = True
        texts.append(f"both {both}" if side == "bilateral" else f"the {side} {one}")
    return " and ".join(texts), sided
