"""Names of findings: one vocabulary of classes and of sources' terms, and the rules that read findings from reports."""
