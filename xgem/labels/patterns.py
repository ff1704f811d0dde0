"""The patterns of the rule labeller: mentions, negations, uncertainty, and where a scope ends.

The classes and their meaning are CheXpert's (:mod:`xgem.labels.vocabulary`); the phrases are xgem's own, written for
the language of Indiana University's chest reports. A pattern may have a group ``at``: cues before it count, so
that "the heart is *not* enlarged" finds its negation inside the match.
"""

from __future__ import annotations

import re
from typing import Final

OTHER: Final = "other"
"""Findings outside the 14 classes: never reported, but a report with one is not "No Finding"."""

_HEART = r"(?:heart|cardiac|cardio ?-?pericardial|cardiomediastinal)(?: (?:size|silhouette|shadow|contours?))*"
_MEDIASTINUM = r"(?:cardio ?-?)?mediastin(?:um|al)(?: (?:silhouette|contours?|structures?|size))*"
_BIG = r"(?:enlarge[dm]\w*|large|prominent|prominence|increased|big)"
_GAP = r"[^.;:]{0,45}?"


def _compile(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


MENTIONS: Final[dict[str, tuple[re.Pattern[str], ...]]] = {
    "Enlarged Cardiomediastinum": _compile(
        (
            r"\bwiden(?:ed|ing)\b(?: of)?(?: the)?(?: upper| superior)? mediastin\w+",
            r"\bmediastin\w+(?: silhouette| contours?)?(?: is| are| appears?)?(?: \w+)?(?: \w+)? (?P<at>widen\w*)",
            rf"\b(?:cardio ?)?mediastin\w+ (?:silhouette |contours? )(?:is |are "
            rf"|appears? )(?:\w+ ){{0,3}}(?P<at>{_BIG})",
            rf"\b{_BIG} (?:cardio ?mediastinal|mediastinal) (?:silhouette|contours?)",
            r"\bmediastinal (?:enlargement|prominence|widening)",
        )
    ),
    "Cardiomegaly": _compile(
        (
            r"\bcardiomegaly\b",
            r"\b(?:cardiac|heart|ventricular) enlarg\w+",
            r"\bincrease in (?:the )?(?:size of the )?(?:heart|cardiac)(?: size| silhouette)?",
            rf"\b{_HEART}(?: \w+){{0,2}}?(?: is| are| appears?| remains?"
            rf"| has)?(?: \w+){{0,5}}? (?P<at>(?:enlarge[dm]\w*|large)\b)",
            r"\benlarge(?:d|ment)(?: of)?(?: the)?(?: cardiac| heart| cardiomediastinal| cardiopericardial)"
            r"(?: silhouette| size| shadow)?",
            r"\b(?:prominent|large|increased) (?:heart|cardiac)(?: silhouette| size| shadow)?",
            r"\b(?:heart|cardiac silhouette|cardiac shadow)(?: size)? (?:is |are |appears? )?"
            r"(?:\w+ )?(?P<at>prominent|increased in size)\b",
        )
    ),
    "Lung Lesion": _compile(
        (
            r"\b(?:micro|fibro|reticulo)?nodul(?:es?|ar|arity)\b(?! contour)",
            r"(?<!soft tissue )(?<!adrenal )\bmass(?:es|like)?\b(?! effect)",
            r"\b(?:cavit(?:y|ary|ies|ation)|neoplasm|neoplastic|carcinoma|malignan\w+|tumou?rs?|metasta\w+)\b",
            r"\b(?:lung|pulmonary|parenchymal|cavitary|hilar) lesions?\b",
        )
    ),
    "Lung Opacity": _compile(
        (
            r"\bopaci(?:ty|ties|fication|fications|fied)\b",
            r"\binfiltrat\w+",
            r"\bair[ -]?space (?:disease|process|opacit\w+|changes?|abnormalit\w+|filling)",
            r"(?<!bone )(?<!bony )(?<!low )(?<!calcific )(?<!metallic )(?<!radiopaque )\bdensit(?:y|ies)\b",
            r"\b(?:increased|prominent|prominence of|coarse\w*|accentuated|diffuse|abnormal)"
            r"(?: the| bilateral| central| basilar| bibasilar| chronic| perihilar| lung| bronchovascular"
            r"| pulmonary){0,3}"
            r" ?interstiti\w+",
            r"\binterstitial (?P<at>(?:markings? (?:are |is )?(?:\w+ )?(?:increased|prominent)|prominence"
            r"|thickening|disease|"
            r"changes?|lung disease|pattern|abnormalit\w+|pneumonitis|fibrosis))",
            r"\b(?:increased|prominent|coarse\w*) (?:\w+ ){0,2}(?:lung|pulmonary|bronchovascular) markings?",
            r"\b(?:reticul\w+|ground[ -]?glass|haz(?:y|iness)|honeycombing|decreased translucency)\b",
        )
    ),
    "Edema": _compile(
        (
            r"(?<!soft tissue )(?<!subpleural )\b(?:o)?edema\b",
            r"\b(?:vascular|pulmonary|venous|central|interstitial)(?: and interstitial)? congestion\b",
            r"\bcongestive (?:heart )?(?:failure|changes?)\b|\bheart failure\b|\bchf\b|\bfluid overload\b",
            r"\b(?:pulmonary )?(?:venous|vascular) hypertension\b|\bcephalization\b|\bkerley\b"
            r"|\bvascular indistinctness\b",
            r"\bvascular (?:prominence|redistribution|engorgement)\b|\b(?:prominent"
            r"|increased) (?:central )?(?:lung|pulmonary) vascul\w+",
        )
    ),
    "Consolidation": _compile((r"\bconsolidat\w+",)),
    "Pneumonia": _compile(
        (
            r"\b(?:broncho)?pneumonias?\b",
            r"(?<!granulomatous )\binfectio(?:n|ns|us)\b",
            r"\baspiration pneumoni\w+",
        )
    ),
    "Atelectasis": _compile(
        (
            r"\batelecta\w+",
            r"(?<!vertebral )\bcollapse[ds]?\b(?! of (?:the )?(?:\w+ )?(?:vertebra|endplate))",
        )
    ),
    "Pneumothorax": _compile((r"\b(?:hydro|hemo)?pneumothora(?:x|ces|xes)\b",)),
    "Pleural Effusion": _compile(
        (
            r"(?<!pericardial )(?<!joint )\beffusions?\b",
            r"\bpleural (?:\w+ )?fluid\b|\b(?:hydro|hemo)(?:pneumo)?thorax\b|\bempyema\b"
            r"|\bfluid in the (?:\w+ )?fissures?",
        )
    ),
    "Pleural Other": _compile(
        (
            r"\bpleural(?:[ -]?(?:based|parenchymal|\w+))?(?: or| and)? (?:thicken\w+|scar\w*|plaques?|fibrosis"
            r"|calcif\w+|mass\w*)",
            r"\bpleuro[ -]?parenchymal\b|\bfibrothorax\b|\bpleural[ -]parenchymal\b"
            r"|\bthickening of the pleura\b|\bfissural thickening\b|\bapical cap(?:ping|s)?\b",
        )
    ),
    "Fracture": _compile((r"\bfractur(?:es?|ed)\b|\bbroken\b",)),
    "Support Devices": _compile(
        (
            r"\b(?:catheters?|piccs?|port-?a-?cath|portacath|mediport|infusaport|pacemakers?|pacer|pacing|aicd|icd)\b",
            r"\b(?:defibrillators?|stimulator|leads|endotracheal|nasogastric|tracheostomy|cannula|valve|prosthe\w+)\b",
            r"\b(?:chest|feeding|ng|et|enteric|dobbhoff|thoracostomy|drainage) tubes?\b|\btubes?\b|\bstents?\b",
            r"\b(?:central|venous|picc|subclavian|jugular)(?: venous)? lines?\b",
            r"\b(?:hardware|arthroplast\w+|implanted|(?:cardiac|medical|generator|assist|support) devices?"
            r"|generator)\b",
            r"\b(?:left|right|chest|jugular|subclavian)(?: \w+)?(?: chest)? port\b|\bport\b(?= catheter| tip| in )",
        )
    ),
    OTHER: _compile(
        (
            r"\bgranulom\w+|\bcalcif\w+|\bcalcinosis\b|\bemphysem\w+|\bcopd\b|\bobstructive (?:lung|pulmonary)",
            r"\bhyper ?-?(?:inflat\w+|expan\w+|aerat\w+|lucen\w+)|\bhypo ?-?(?:inflat\w+|expan\w+|aerat\w+"
            r"|ventilat\w+)",
            r"\blow lung volumes?|\blung volumes are (?:\w+ )?low|\b(?:low|decreased|reduced) lung volumes?"
            r"|\bair trapping\b",
            r"\bscar(?:ring|s)?\b|\bfibro(?:sis|tic)\b|\bbronchiectasis\b|\bbulla\w*|\bbleb\w*|\bcuffing\b|\bblunt\w+",
            r"\bdegenerat\w+|\bosteophyt\w+|\bspondylo\w+|\bscoliosis\b|\bkypho\w+|\bspurring\b|\barthr(?:itis"
            r"|itic|opathy|osis)\b",
            r"\bwedg\w+|\bcompression\b|\bosteop(?:enia|enic|orosis|orotic)\b|\bdemineraliz\w+|\bpectus\b"
            r"|\bdislocation\b",
            r"\btortuo\w+|\becta(?:sia|tic)\b|\batheroscl\w+|\baneurysm\w*|\buncoil\w*|\bunfold\w*|\barteriosclero\w+",
            r"\bhernia\w*|\beventration\b|\bdeformit\w+|\bthicken\w+|\badenopathy\b|\blymphadenopathy\b|\bdextro\w+",
            r"\belevat(?:ed|ion)(?: of)?(?: the)?(?: \w+)? (?:hemi)?diaphragm|\b(?:hemi)?diaphragm (?:is "
            r"|remains )?(?:\w+ )?elevated",
            r"\bclips?\b|\bsternotomy\b|\bsutures?\b|\bforeign bod\w+|\bbullets?\b|\bpneumoperitoneum\b"
            r"|\bvolume loss\b",
            r"\b(?:enlarged|prominent|prominence of)(?: \w+){0,2} (?:pulmonary arter\w+|hil\w+|aort\w+)|\bcurvature\b",
            r"\b(?:lytic|osseous|bony|bone|sclerotic) lesions?\b|\bnipple shadow\w*|\bsequela\w*|\blucenc(?:y|ies)\b",
            r"\bcrowding\b|\bbronchitis?\b|\bbronchitic\b|\bhyperostosis\b|\bdish\b|\bfat pad\b|\bcholecystectomy\b",
        )
    ),
}

# Statements that a structure is normal: they set a class to 0 without naming a disease
NORMAL_STATEMENTS: Final[dict[str, tuple[re.Pattern[str], ...]]] = {
    "Cardiomegaly": _compile(
        (
            rf"\b(?:normal|non-?enlarged|unremarkable|normal[ -]sized) (?:\w+ )?{_HEART}",
            rf"\b{_HEART}\b[^.;:]{{0,90}}?\bnormal\b",
            rf"\b{_HEART}\b[^.;:]{{0,60}}?\b(?:unremarkable|not (?:\w+ )?enlarged)",
        )
    ),
    "Enlarged Cardiomediastinum": _compile(
        (
            rf"\b(?:normal|unremarkable) (?:\w+ ){{0,4}}{_MEDIASTINUM}",
            rf"\b{_MEDIASTINUM}\b[^.;:]{{0,70}}?\b(?:normal|unremarkable|midline)\b",
        )
    ),
    "Lung Opacity": _compile(
        (
            r"\b(?:lungs?|lung fields?|lung zones?)\b(?: are| is| appear\w*| remain\w*|,)?(?: \w+){0,4}? clear\b",
            r"\bclear lungs?\b",
        )
    ),
    "Pleural Effusion": _compile(
        (
            rf"\bpleural (?:spaces?|surfaces?|margins?)\b{_GAP}\b(?:clear|normal|unremarkable)\b",
            rf"\b(?:costophrenic|costodiaphragmatic)\b{_GAP}\b(?:clear|sharp|normal)\b",
        )
    ),
}
BORDERLINE_HEART: Final = re.compile(rf"\b{_HEART}\b[^.;:]{{0,40}}?\bborderline\b|\bborderline (?:\w+ )?{_HEART}")
"""Between normal and enlarged: -1 for Cardiomegaly. "Upper limits of normal" is still normal, as for the annotators."""

# Pseudo-negations: the finding is present, only a change of it is negated
PSEUDO_NEGATIONS: Final = re.compile(
    r"\bno (?:significant |interval |definite |appreciable |substantial |other |other interval )*"
    r"(?:change|increase|decrease|improvement|worsening|progression)s?\b(?: (?:in|of|from))?"
    r"|\bwithout (?:significant |interval )*(?:change|improvement|resolution)"
    r"|\bnot (?:significantly |appreciably )?(?:changed|improved|resolved|only|as|well)\b|\bnot entirely\b"
    r"|\bno (?:doubt|further)\b|\bunresolved\b|\bno resolution\b"
)
UNCERTAIN_BEFORE: Final = re.compile(
    r"\b(?:possib\w+|probabl[ey]|may|might|could|likely|presum\w+|perhaps|suspect(?:ed)?|suspicio\w+|concern(?:ing)?"
    r"|question(?:able|ing)?|equivocal|borderline|suggest(?:s|ed|ive|ing)?|favou?r(?:ed|ing|s)?|potential(?:ly)?"
    r"|versus|vs|differential|consider(?:ation)?|(?:can ?not|could not|difficult to|to|not) (?:exclude|rule out)"
    r"|rule out|r/o|indeterminate|apparent|appearance of|developing or)\b"
)
UNCERTAIN_AFTER: Final = re.compile(
    r"\b(?:(?:is|are|was|were|be) (?:\w+ )?(?:possible|suspected|questioned|questionable|considered|favou?red|likely)"
    r"|(?:can ?not|could not|not|should)(?: be)?(?: \w+)? (?:excluded|ruled out)|not entirely excluded"
    r"|is a consideration"
    r"|(?:not|difficult to) exclude[d]?|in the differential|versus|vs)\b|\?"
)
NEGATIVE_BEFORE: Final = re.compile(
    r"\b(?:no|not|without|negative for|free of|free from|clear of|absence of|absent|denies|neither|nor|never|none"
    r"|resolution of|resolved|removal of|removed|instead of|rather than|lack of|exclusion of|unlikely|non)\b"
)
NEGATIVE_AFTER: Final = re.compile(
    r"\b(?:(?:is|are|was|were|has|have)(?: been)?(?: \w+)? (?:resolved|cleared|removed|absent)|resolved"
    r"|no longer (?:\w+ )?(?:seen|present|visuali[sz]ed|identified|evident|visible|appreciated)"
    r"|not (?:appear to be )?(?:\w+ )?(?:seen|present|visuali[sz]ed|identified|evident|visible|appreciated"
    r"|demonstrated|noted|observed|found)"
    r"|ruled out|(?:is|are) (?:excluded|unlikely))\b"
)
HYPOTHETICAL: Final = re.compile(
    r"\b(?:evaluat\w+ (?:for|of)|(?:to|and) (?:identify|detect)|assess\w* for|history of|hx of|symptoms of"
    r"|signs? or symptoms|risk (?:of|for)"
    r"|follow ?-?up (?:\w+ )?(?:to|for|until)|document (?:\w+ )?(?:resolution|clearing)|ensure resolution"
    r"|resolution is recommended|sensitivity for)\b|^if\b|, if\b|\bmay not be (?:seen|demonstrated|visible|apparent)"
)
"""Mentions in such a clause are questions, history or recommendations, not findings."""

_GRADED = (
    r"(?:stable|unchanged|mild(?:ly)?|moderate(?:ly)?|severe(?:ly)?|marked(?:ly)?|minimal(?:ly)?|small|slight(?:ly)?"
    r"|persistent|residual|chronic|old|healed|prior|again|increas(?:ed|ing)|decreas(?:ed|ing)|bibasilar|bilateral"
    r"|left|right|patchy|low|tortuous|calcified|scattered|enlarged|borderline|subtle|interval)"
)
TERMINATORS: Final = re.compile(
    r"\b(?:but|however|although|though|except(?:ing)?|apart from|aside from|other than|otherwise|which|whereas|while"
    r"|yet|still|there (?:is|are|was|were|has|have|'s)|and the|heart (?:size )?(?:is|are|remains)|lungs are)\b"
    r"|[;:]| - |\bthere's\b"
)
"""Every scope ends here."""
NEGATION_ENDS: Final = re.compile(
    rf", (?:and )?{_GRADED}\b|\bwith (?:a |an |the )?{_GRADED}\b|\b(?:secondary|due) to\b|\bin spite of\b|\bdespite\b"
    rf"|\band (?:stable|unchanged|mild|moderate|again)\b"
)
"""A negation ends here: what follows is positive, as in "No effusion, stable cardiomegaly"."""
KNOWN_WORDS: Final = re.compile(
    r"\b(?:chests?|cxr|thora(?:x|cic)|lungs?|pulmonary|pleura\w*|heart|cardi\w+|mediastin\w+|hil(?:ar|um|a)|aort\w+"
    r"|(?:hemi)?diaphragm\w*|costophrenic|airways?|trachea\w*|bronch\w+|ribs?|spin(?:e|al)|osseous|bon(?:y|es?)"
    r"|vascul\w+|x ?-? ?rays?|radiograph\w*|findings?|(?:ab)?normal\w*|unremarkable|clear|negative|acute|active"
    r"|diseases?|process(?:es)?|stable|unchanged|changes?|interval|effusions?|pneumon\w+)\b"
)
"""Words by which a text without any mention is recognised as a chest report."""
