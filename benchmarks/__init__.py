"""The product measured, beside its targets and, where they can be installed, its peers. Run by hand."""
