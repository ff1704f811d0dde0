"""Networks that judge images and reports: classifiers, segmenters, re-identification, feature extractors, labellers."""
